"""`trainer gate`: its verdicts against SciPy and by hand, and every reason for which it will not judge."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from karat.core.provenance import digest
from karat.core.report import ProofStatus
from karat.invariants import standing
from karat.trainer.cli import main
from karat.trainer.gate import gate_of, judge_runs

Trainer = Callable[..., int]
Edit = Callable[[Path, str], Callable[..., Path]]

NO_PROOF = ProofStatus(
    invariant="INV-7", grade="UNPROVED", engines=(), shown=0, tested=0, refuted_as_expected=0, fingerprint=""
)


def verdict(*runs: str | float, target: str = "1.5", alpha: str = "0.01") -> Any:
    return judge_runs([Fraction(run) for run in runs], gate_of(target, alpha), NO_PROOF)


@pytest.mark.parametrize(
    ("runs", "met", "p"),
    [
        (("1.45", "1.44", "1.46"), True, 0.00655),
        (("1.49", "1.48", "1.47"), False, 0.0371),
        (("1.42", "1.35", "1.47"), False, 0.0652),
        (("1.55", "1.54", "1.56"), False, 0.9935),
        (("1.4", "1.4", "1.4"), False, 0.5),
    ],
)
def test_verdicts_by_hand(runs: tuple[str, ...], met: bool, p: float) -> None:
    found = verdict(*runs)
    assert found.met is met and found.p == pytest.approx(p, abs=1e-4)
    assert found.line.startswith("VICTORY p=" if met else "NOT MET p=")
    assert ("> " in found.compared) is met and (runs[0] != runs[1]) is ("lead·|lead| = " in found.compared)


losses = st.integers(12_000, 16_000).map(lambda n: Fraction(n, 10_000))


@given(st.lists(losses, min_size=3, max_size=3).filter(lambda r: len(set(r)) > 1), st.floats(0.001, 0.05))
def test_the_exact_decision_is_scipys(runs: list[Fraction], alpha: float) -> None:
    found = judge_runs(runs, gate_of("1.5", repr(alpha)), NO_PROOF)
    expected = stats.ttest_1samp([float(r) for r in runs], 1.5, alternative="less")
    assert found.p == pytest.approx(float(expected.pvalue), abs=1e-9)
    if abs(float(expected.pvalue) - alpha) > 1e-9:
        assert found.met is (float(expected.pvalue) < alpha)


@given(st.lists(losses, min_size=4, max_size=9).filter(lambda r: len(set(r)) > 1))
def test_other_numbers_of_runs_are_judged_by_scipy(runs: list[Fraction]) -> None:
    found = judge_runs(runs, gate_of("1.5", "0.01"), NO_PROOF)
    p = float(stats.ttest_1samp([float(r) for r in runs], 1.5, alternative="less").pvalue)
    assert found.p == pytest.approx(p, abs=1e-9) and "tested" in found.evidence
    if abs(p - 0.01) > 1e-9:
        assert found.met is (p < 0.01 and max(runs) < Fraction(3, 2))


def test_more_runs_can_have_a_small_p_and_one_above_the_target() -> None:
    runs = (*["1.40"] * 8, "1.41", "1.51")
    found = verdict(*runs)
    assert found.p < 0.01 and not found.met and found.margin == pytest.approx(-0.01)
    assert math.isfinite(found.margin)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny_settings: tuple[str, ...]) -> list[Path]:
    """Three finished runs of one tiny configuration with seeds 1, 2, 3."""
    base = tmp_path_factory.mktemp("gate")
    for seed in (1, 2, 3):
        sets = [part for setting in (*tiny_settings, f"seed={seed}") for part in ("--set", setting)]
        code = main(["run", "--quiet", "--policy", "warn", "--data", str(text), "--out", str(base / str(seed)), *sets])
        assert code == 0
    return [base / str(seed) for seed in (1, 2, 3)]


@pytest.fixture
def copies(three: list[Path], tmp_path: Path) -> list[Path]:
    """The reports of the three runs in folders that a test may change."""
    for run in three:
        (tmp_path / run.name).mkdir()
        shutil.copy(run / "report.json", tmp_path / run.name)
    return [tmp_path / run.name for run in three]


def edit(run: Path, *, honest: bool = True, **changes: Any) -> None:
    """Rewrites a report with some values changed (dotted with __), and with the digest of its new content if honest."""
    path = run / "report.json"
    data = json.loads(path.read_text())
    stated = data.pop("digest")
    for name, value in changes.items():
        *folders, key = name.split("__")
        table = data
        for folder in folders:
            table = table[folder]
        table[key] = value
    path.write_text(json.dumps({**data, "digest": digest(data) if honest else stated}))


def gate(*runs: Path, target: str = "20") -> int:
    return main(["gate", *map(str, runs), "--target", target, "--policy", "warn"])


def test_three_runs_meet_the_gate(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(*three) == 0
    out, err = capsys.readouterr()
    assert out.startswith("VICTORY p=") and out.count("\n") == 1 and "lead·|lead| = " in out and " > " in out
    for part in ("INV-7 victory-gate holds", "observed", "(seed 1)", "required", "margin", "evidence", "next"):
        assert part in err
    assert main(["gate", *map(str, three), "--target", "20", "--json", "--policy", "warn"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (
        data["verdict"] == "VICTORY" and [run["seed"] for run in data["runs"]] == [1, 2, 3] and data["target"] == "20"
    )
    bpb = [json.loads((run / "report.json").read_text())["bpb"] for run in three]
    assert [run["bpb"] for run in data["runs"]] == bpb


def test_the_target_not_met_ends_1(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(*three, target="1.5") == 1
    out, err = capsys.readouterr()
    assert out.startswith("NOT MET p=") and "INV-7 victory-gate violated" in err and "margin     -" in err


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bpb": None}, "has no finite validation loss"),
    ({"bpb": 1e200}, "has a validation loss of 1e+200 bits per byte, required 0 to 1000"),
    ({"bpb": -3.0}, "has a validation loss of -3 bits per byte"),
    ({"steps_done": 5}, "took 5 of 9 steps"),
    ({"config__optim__warmup": 9}, "its warm-up has 9"),
    ({"exit_code": 1, "outcome": "finished with 1 violations"}, "ended with exit code 1"),
    ({"policy": "off"}, "ran with its guards off"),
    ({"config__seed": 1}, "have the same seed 1"),
    ({"config__optim__lr": 0.005}, "has optim.lr = 0.004"),
    ({"data__manifest digest": "0" * 64}, "have different data"),
    ({"validation": "the first 9 bytes"}, "have different validation"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_sample_cannot_be_judged(
    changes: dict[str, Any], reason: str, copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(*copies) == 0
    edit(copies[2], **changes)
    capsys.readouterr()
    assert gate(*copies) == 2
    out, err = capsys.readouterr()
    assert out == "" and reason in err and str(copies[2]) in err and "required" in err


def test_identical_runs_cannot_be_judged(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads((copies[0] / "report.json").read_text())
    edit(copies[1], bpb=first["bpb"])
    assert gate(*copies) == 2 and "are identical" in capsys.readouterr().err
    edit(copies[1], bpb=first["bpb"] + 0.001, weights=first["weights"])
    assert gate(*copies) == 2 and "are identical" in capsys.readouterr().err
    assert len(first["weights"]) == 64


def test_a_run_given_twice_cannot_be_judged(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(copies[0], copies[1], copies[0]) == 2
    assert "are one run, given twice" in capsys.readouterr().err
    shutil.copy(copies[0] / "report.json", copies[2])
    assert gate(*copies) == 2 and "are one run, given twice" in capsys.readouterr().err


def test_altered_absent_or_broken_reports_cannot_be_judged(
    copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(*copies[:2]) == 2 and "2 runs to judge" in capsys.readouterr().err
    edit(copies[1], honest=False, bpb=0.5)
    assert gate(*copies) == 2 and "was altered" in capsys.readouterr().err
    (copies[1] / "report.json").write_text('{"bpb": NaN')
    assert gate(*copies) == 2 and "is not a run report" in capsys.readouterr().err
    (copies[1] / "report.json").unlink()
    assert gate(*copies) == 2 and "has no report" in capsys.readouterr().err


NESTED: dict[str, str] = {"lists": "[" * 200_000, "objects": '{"a":' * 200_000}
OTHER: dict[str, tuple[str, str]] = {
    "a list": ("[]", "it is not a JSON object"),
    "a text": ('"x"', "it is not a JSON object"),
    "no digest": ("{}", "it has no digest"),
    "digits": ('{"bpb": ' + "1" * 5000 + "}", "is not a run report: "),
}


@pytest.mark.parametrize("command", ["gate", "report"])
@pytest.mark.parametrize(
    ("content", "why"),
    [*((text, "its JSON is nested deeper than 16 levels") for text in NESTED.values()), *OTHER.values()],
    ids=[*NESTED, *OTHER],
)
def test_json_that_is_no_report_is_told(
    content: str, why: str, command: str, copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (copies[1] / "report.json").write_text(content)
    assert (gate(*copies) if command == "gate" else main(["report", str(copies[1])])) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"{copies[1] / 'report.json'} is not a run report" in err and why in err
    assert "unexpected" not in err and f"trainer resume {copies[1]}" in err


def test_an_honest_digest_does_not_excuse_nesting(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for depth, code in ((14, 0), (15, 2), (200, 2)):  # under `config`, itself in the report
        edit(copies[1], config__data=nested(depth))
        assert main(["report", str(copies[1])]) == code
        assert ("nested deeper" in capsys.readouterr().err) is (code == 2)


def nested(depth: int) -> dict[str, Any]:
    """{"a": {"a": … 1}}, so many objects deep."""
    return {"a": nested(depth - 1) if depth > 1 else 1}


def test_a_loss_that_is_not_a_number_cannot_be_judged(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copies[2] / "report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "bpb": math.nan}))
    assert gate(*copies) == 2
    out, err = capsys.readouterr()
    assert out == "" and str(path) in err and "is not a run report" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target", "-1", "a loss above 0"),
        ("--target", "nan", "two numbers"),
        ("--target", "1/0", "two numbers"),
        ("--target", "", "two numbers"),
        ("--target", "inf", "two numbers"),
        ("--target", "1e400", "up to 1000, in bits per byte"),
        ("--target", "-1e9999", "a loss above 0"),
        ("--target", "1e-400", "a loss above 0"),
        ("--target", "1e999999999", "two numbers"),
        ("--target", "1" * 5000, "two numbers"),
        ("--alpha", "1e-400", "0 < alpha <= 0.05"),
        ("--alpha", "0", "0 < alpha <= 0.05"),
        ("--alpha", "0.2", "0 < alpha <= 0.05"),
        ("--alpha", "x", "two numbers"),
    ],
)
def test_bad_options(
    option: str, value: str, message: str, three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", *map(str, three), f"{option}={value}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err) < 250
    assert (
        err.startswith(f"trainer: {option} '{value[:40]}")
        and "  next      trainer gate RUN RUN RUN --target=1.5" in err
    )


def test_strict_judges_by_current_proofs_only(
    three: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(standing, "read_lock", lambda path: None)
    assert main(["gate", *map(str, three), "--target", "20"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "INV-7 is UNPROVED" in err and "make verify" in err
    assert gate(*three) == 0 and "UNPROVED" in capsys.readouterr().err
