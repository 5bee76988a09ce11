"""The claims ledger: verdicts are computed, no checker is blind, and the committed page is what the command gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from karat.core.bounds import Log
from karat.core.golden import PHI
from karat.proofs import claims
from karat.proofs.claims import CHECKERS, CLAIMS, DOCUMENTS, main, page, rulings, tells_apart
from karat.proofs.ledger import cpu_architecture, igla_results, structure_over_scale, ternary_run
from karat.proofs.ledger.decimals import agrees, read, show
from karat.proofs.ledger.record import Claim, Document, Finding, Ruling, Verdict, decided, rule

DECIDED = [claim for claim in CLAIMS if not claim.open]
BY_ID = {claim.id: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def ruled() -> list[Ruling]:
    return rulings()


def test_at_least_sixty_claims_from_four_documents_with_ids_of_their_own() -> None:
    assert len(CLAIMS) >= 60
    assert len(BY_ID) == len(CLAIMS)
    assert {claim.id[:5] for claim in CLAIMS} == {"C-000", "C-001", "C-002", "C-003"}
    for document in DOCUMENTS:
        assert all(re.fullmatch(re.escape(document.prefix) + r"\.\d\d", e.claim.id) for e in document.entries)


def test_a_claim_has_a_checker_or_a_reason_why_it_has_none() -> None:
    for claim in CLAIMS:
        assert bool(claim.open) != (claim.id in CHECKERS), claim.id
        assert claim.text and claim.where and claim.how
        assert "/work" not in f"{claim.text}{claim.where}{claim.open}"
    assert set(CHECKERS) <= set(BY_ID)


def test_every_claim_is_decided_or_declared_open(ruled: list[Ruling]) -> None:
    assert not [r for r in ruled if r.amiss]
    assert all((r.verdict is Verdict.UNDECIDED) == bool(r.claim.open) for r in ruled)
    assert {r.verdict for r in ruled} == set(Verdict)
    assert all(r.computed or r.verdict is not Verdict.FALSE for r in ruled), (
        "a false claim comes with the value computed"
    )


@pytest.mark.parametrize("claim", DECIDED, ids=lambda claim: claim.id)
def test_the_checker_comes_to_another_verdict_on_another_statement(claim: Claim) -> None:
    assert claim.wrong is not None and claim.wrong != claim.stated
    assert tells_apart(claim, CHECKERS)


@pytest.mark.parametrize("blind", [Finding(True, ""), Finding(False, ""), Finding(True, "", vacuous=True)])
def test_a_blind_checker_is_noticed(blind: Finding) -> None:
    claim = BY_ID["C-003.16"]
    assert not tells_apart(claim, {claim.id: lambda stated: blind})


@pytest.mark.parametrize("claim", DECIDED, ids=lambda claim: claim.id)
def test_without_its_checker_a_claim_is_undecided(claim: Claim) -> None:
    left = {name: check for name, check in CHECKERS.items() if name != claim.id}
    ruling = rule(claim, left)
    assert ruling.verdict is Verdict.UNDECIDED and ruling.amiss


def test_an_open_claim_stays_undecided_whatever_checker_it_is_given() -> None:
    claim = next(claim for claim in CLAIMS if claim.open)
    ruling = rule(claim, {claim.id: lambda stated: Finding(True, "")})
    assert ruling.verdict is Verdict.UNDECIDED and not ruling.amiss and ruling.note


def _raise(stated: Any) -> Finding:
    raise ZeroDivisionError("of nothing")


def test_a_checker_that_raises_leaves_the_claim_undecided_and_ends_in_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = BY_ID["C-003.01"]
    monkeypatch.setitem(CHECKERS, claim.id, _raise)
    ruling = rule(claim, CHECKERS)
    assert ruling.verdict is Verdict.UNDECIDED and ruling.amiss and "ZeroDivisionError: of nothing" in ruling.note
    assert main(["--only", claim.id]) == 2
    assert "C-003.01 is not decided" in capsys.readouterr().err


def test_a_missing_checker_ends_in_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(CHECKERS, "C-003.01")
    assert main(["--only", "C-003.01"]) == 2
    assert "UNDECIDED" in capsys.readouterr().out


def test_an_aside_that_raises_is_told() -> None:
    def aside() -> str:
        raise ValueError("no number")

    ruling = rule(Claim("C-1.01", "x", "y", "z", open="no data", aside=aside), {})
    assert ruling.verdict is Verdict.UNDECIDED and ruling.amiss


def test_the_verdict_follows_the_stated_number_not_the_record() -> None:
    """Another stated number through the same command path: 0.004 is false, what phi gives is true."""
    claim = BY_ID["C-003.16"]
    verdicts = [
        rule(replace(claim, stated=stated), CHECKERS).verdict for stated in ("0.004", "0.0279", "0.02786", "0.0280")
    ]
    assert verdicts == [Verdict.FALSE, Verdict.TRUE, Verdict.TRUE, Verdict.FALSE]


@pytest.mark.parametrize(("stated", "low", "high"), [
    ("0.67", "0.665", "0.675"), ("~0.67M", "660000", "680000"), ("11,000", "10999.5", "11000.5"),
    ("~11,000", "10000", "12000"), ("~440", "430", "450"), ("97.8%", "0.9775", "0.9785"), ("-0.35", "-0.355", "-0.345"),
    ("~4.7e-10", "4.6e-10", "4.8e-10"), ("0", "-0.5", "0.5"), ("~0", "-1", "1"),
])  # fmt: skip
def test_a_decimal_stands_for_what_rounds_to_it(stated: str, low: str, high: str) -> None:
    assert read(stated) == (Fraction(low), Fraction(high))


@pytest.mark.parametrize("stated", ["", "about 3", "1.2.3", "~~3", "3 MB", "1e"])
def test_what_is_not_a_decimal_is_refused(stated: str) -> None:
    with pytest.raises(ValueError, match="is not a decimal"):
        read(stated)


def test_agreement_is_exact_at_the_ends_and_for_every_kind_of_number() -> None:
    assert agrees("0.5", Fraction("0.55")) and not agrees("0.5", Fraction("0.5500001"))
    assert agrees("2.618", PHI**2) and not agrees("2.619", PHI**2)
    assert agrees("2.1972", Log(Fraction(9))) and not agrees("2.1973", Log(Fraction(9)))
    assert agrees("0.1", 0.1) and agrees("3", 3) and not agrees("3", 4)
    assert (show(3672392), show(Fraction(1, 3)), show(PHI), show(Log(Fraction(9)))) == (
        "3,672,392", "0.333333", "1.61803", "2.19722")  # fmt: skip


def test_known_values() -> None:
    """A few numbers, worked out by hand or taken from another program."""
    assert ternary_run.parameters() == 1_048_576 + 4 * (262_144 + 393_216 + 512 + 18) + 256
    assert ternary_run.gguf_bytes() == 4_940_800
    nano = cpu_architecture.ROWS[0]
    assert cpu_architecture.parameters(nano, 2048, False) == 673_024
    assert cpu_architecture.linear_flops(nano) == 805_306_368 and cpu_architecture.head_flops(nano) == 536_870_912
    assert structure_over_scale.unit_roundoff_quotient() == 8192
    assert igla_results.student_p(("1.45", "1.44", "1.46"), "1.50") == pytest.approx(0.0065, abs=5e-5)


def test_the_committed_page_is_what_the_command_gives(ruled: list[Ruling], repository: Path) -> None:
    assert (repository / "docs" / "claims.md").read_text(encoding="utf-8") == page(ruled), "run: make claims"


def test_the_page_has_a_row_per_claim_and_no_path_or_date(ruled: list[Ruling]) -> None:
    text = page(ruled)
    for claim in CLAIMS:
        assert len(re.findall(rf"^\| {re.escape(claim.id)} \|", text, re.MULTILINE)) == 1
    assert not re.search(r"(?<!\w)/(work|tmp|home|usr)\b", text)


def test_the_command_gives_the_same_bytes_in_another_process_without_torch(tmp_path: Path, repository: Path) -> None:
    written = tmp_path / "claims.md"
    block = (
        "import sys; sys.modules['torch'] = None\nfrom karat.proofs.claims import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", block, "--write", str(written)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert written.read_bytes() == (repository / "docs" / "claims.md").read_bytes()
    assert ran.stdout.splitlines()[-1].startswith(f"{len(CLAIMS)} claims: ")


def test_json_and_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--only", "C-002.0*", "--only", "C-003.01"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == [f"C-002.0{n}" for n in range(1, 10)] + ["C-003.01"]
    assert {row["id"]: row["verdict"] for row in rows}["C-002.02"] == "FALSE"
    assert set(rows[0]) == {"id", "claim", "where", "decided_by", "verdict", "computed", "note"}


@pytest.mark.parametrize("arguments", [["--only", "C-9*"], ["--only", "C-002.01", "--write", "page.md"]])
def test_mistyped_commands_end_in_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "required" in capsys.readouterr().err
    assert not Path("page.md").exists()


@pytest.mark.parametrize(
    ("patterns", "seen", "cure"),
    [
        (["nonsense"], "no claim is called nonsense", "--only 'C-000.*'"),
        (["c-003.01"], "no claim is called c-003.01", "did you mean C-003.01 or "),
        (
            ["C-003.01", "C-00.01"],
            "no claim is called C-00.01",
            "did you mean C-003.01 or ",
        ),  # one of two is not passed over
    ],
)
def test_an_unknown_claim_is_told_with_what_to_type(
    patterns: list[str], seen: str, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part for pattern in patterns for part in ("--only", pattern)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"claims: {seen}\n") and "C-003S.*" in err
    assert cure in err.splitlines()[-1] and err.splitlines()[-1].startswith("  next      ")


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["--only", "C-003.09"]) == 0
    printed = capsys.readouterr().out
    assert "FALSE" in printed and "\x1b[" in printed


def test_documents_print_whatever_order_their_entries_have() -> None:
    def check(stated: int) -> Finding:
        return Finding(stated == 1, "1")

    checkers: dict[str, Callable[[Any], Finding]] = {"C-x.01": check, "C-x.02": check}
    entries = (decided("C-x.02", "b", "w", "h", check, 2, 1), decided("C-x.01", "a", "w", "h", check, 1, 2))
    document = Document("C-x", "t", "about", entries)
    ordered = claims._of(document, rulings([e.claim for e in entries], checkers))
    assert [(r.claim.id, r.verdict) for r in ordered] == [("C-x.01", Verdict.TRUE), ("C-x.02", Verdict.FALSE)]
