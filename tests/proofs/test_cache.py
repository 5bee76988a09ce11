"""What was decided before is kept for as long as nothing that it rests on changes, and never longer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from karat.core.evidence import Evidence, Grade, MutantRecord, MutantState
from karat.invariants import template
from karat.proofs import cache, verify
from karat.proofs.cache import Cache, key_of, key_of_trial
from karat.proofs.mutation import trials
from karat.proofs.worker import decide, invariants

OBLIGATION = template.INVARIANT.obligations[0]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return decide(OBLIGATION)


def test_kept_evidence_is_marked_as_kept(tmp_path: Path, evidence: Evidence) -> None:
    kept = Cache(tmp_path)
    assert kept.evidence(key_of(OBLIGATION)) is None
    kept.keep_evidence(key_of(OBLIGATION), evidence)
    again = Cache(tmp_path).evidence(key_of(OBLIGATION))
    assert again is not None and again.cached and not evidence.cached
    assert again.model_copy(update={"cached": False}) == evidence


def test_what_is_not_as_expected_is_never_kept(tmp_path: Path, evidence: Evidence) -> None:
    for odd in ({"expected": False}, {"expected": False, "grade": Grade.UNKNOWN}):
        Cache(tmp_path).keep_evidence("k", evidence.model_copy(update=odd))
    survivor = MutantRecord(function="f", where="f.py:1", change="< becomes <=", state=MutantState.SURVIVED)
    Cache(tmp_path).keep_mutants("m", [survivor])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null", '{"digest": "x", "result": {}}'])
def test_a_damaged_file_is_passed_over(tmp_path: Path, evidence: Evidence, damage: str) -> None:
    kept = Cache(tmp_path)
    kept.keep_evidence("k", evidence)
    (tmp_path / "k.json").write_text(damage)
    assert kept.evidence("k") is None


def test_a_result_edited_by_hand_is_passed_over(tmp_path: Path, evidence: Evidence) -> None:
    kept = Cache(tmp_path)
    kept.keep_evidence("k", evidence)
    path = tmp_path / "k.json"
    held = json.loads(path.read_text())
    held["result"]["detail"] = "believe me"
    path.write_text(json.dumps(held))
    assert kept.evidence("k") is None


def test_the_key_changes_with_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(OBLIGATION)
    assert before == key_of(OBLIGATION)
    monkeypatch.setattr(cache, "_machinery", lambda: "other engines")
    assert key_of(OBLIGATION) != before


def test_the_key_changes_with_the_claim_and_the_functions() -> None:
    keys = {o.id: key_of(o) for i in invariants() for o in i.obligations}
    assert len(set(keys.values())) == len(keys)
    groups = trials([template.INVARIANT], invariants(), {})
    first = key_of_trial(groups[0], keys)
    assert first == key_of_trial(groups[0], keys)
    wanted = groups[0].mutants[0].quick[0]
    assert first != key_of_trial(groups[0], keys | {wanted: "changed"})


def test_no_folder_keeps_nothing(evidence: Evidence) -> None:
    Cache(None).keep_evidence("k", evidence)
    assert Cache(None).evidence("k") is None


def test_the_printed_score_is_not_all_green_beside_a_refuted_proof(evidence: Evidence) -> None:
    refuted = evidence.model_copy(update={"grade": Grade.REFUTED, "expected": False})
    for shown, said in ((evidence, ""), (refuted, "none: not of INV-900, of which an obligation is NOT as expected")):
        console = Console(record=True, width=170, file=io.StringIO())
        verify.show_mutants([shown], [], (), console)
        assert console.export_text().strip() == (f"mutation score: {said}" if said else "")


@pytest.mark.parametrize("name", ["NOPE", "INV-88"])
def test_an_unknown_invariant_is_told_with_what_to_type(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--only", name, "--no-lock"]) == 2
    out, err = capsys.readouterr()
    seen, required, cure = err.splitlines()
    assert out == "" and seen == f"verify: there is no invariant '{name}'" and "INV-12, LIMIT-1, INV-900" in required
    assert cure.endswith("trainer explain lists them all") and ("did you mean INV-8 " in cure) is (name == "INV-88")


def test_the_template_can_be_verified_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--only", "template", "--no-lock", "--jobs", "1", "--out", str(tmp_path)]) == 0
    assert "1 obligations: 1 proved" in capsys.readouterr().out


def test_a_second_run_proves_nothing_anew(tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    obligations = list(template.INVARIANT.obligations)
    first = verify.verify(obligations, [template.INVARIANT], 2, quiet, Cache(tmp_path))
    second = verify.verify(obligations, [template.INVARIANT], 2, quiet, Cache(tmp_path))
    assert not any(e.cached for e in first[0]) and all(e.cached for e in second[0]) and all(m.cached for m in second[1])
    assert [m.state for m in first[1]] == [m.state for m in second[1]] and first[1]
    assert all(m.state is not MutantState.SURVIVED for m in first[1])
