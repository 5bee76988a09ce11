"""Verdicts, policy, evidence, reports and fingerprints: what is decided, what is green, what changes a fingerprint."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from karat.core.errors import EvidenceError, KaratError, StorageError
from karat.core.evidence import (
    Counterexample,
    Evidence,
    Grade,
    MutantRecord,
    MutantState,
    exit_code,
    score_line,
    unjudged,
)
from karat.core.formulas import schedule
from karat.core.policy import Action, Policy, decide
from karat.core.provenance import digest, fingerprint
from karat.core.render_markdown import verification_markdown
from karat.core.report import VerificationReport, digest_holds, read_lock, write_report, write_text
from karat.core.syntax import loaded_as_written
from karat.core.verdict import Status, Verdict, judge


def flat(values: dict[str, float], parameters: None, ops: object) -> float:
    return values["x"]


@pytest.mark.parametrize(
    ("x", "status"),
    [(0.0, Status.HOLDS), (1e-300, Status.HOLDS), (-5e-324, Status.VIOLATED), (math.nan, Status.VIOLATED),
     (math.inf, Status.VIOLATED), (-math.inf, Status.VIOLATED)],
)  # fmt: skip
def test_judge(x: float, status: Status) -> None:
    assert judge(flat, {"x": x}, None).status is status


def test_judge_looks_into_nested_values() -> None:
    verdict = judge(lambda values, parameters, ops: 1.0, {"m": [[1.0, 2.0], [3.0, math.nan]]}, None)
    assert verdict.violated and verdict.reason == "m is not finite"


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        (Policy.OFF, Action.CONTINUE),
        (Policy.OBSERVE, Action.RECORD),
        (Policy.WARN, Action.SAY),
        (Policy.STRICT, Action.STOP),
    ],
)
def test_decide(policy: Policy, action: Action) -> None:
    assert decide(Verdict(Status.VIOLATED, -1.0), policy) is action
    assert decide(Verdict(Status.HOLDS, 1.0), policy) is Action.CONTINUE
    assert decide(Verdict(Status.NOT_APPLICABLE, 0.0), policy) is Action.CONTINUE


def found(grade: Grade, *, must_fail: bool = False, expected: bool | None = None) -> Evidence:
    return Evidence(
        obligation="INV-1.x", invariant="INV-1", claim="c", kind="k", engine="e", grade=grade, must_fail=must_fail,
        expected=grade >= Grade.TESTED if expected is None else expected,
        counterexample=Counterexample(values={}, reproduced=True) if grade is Grade.REFUTED else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grade", "code"),
    [(Grade.PROVED, 0), (Grade.TESTED, 0), (Grade.REFUTED, 1), (Grade.VACUOUS, 1), (Grade.UNKNOWN, 2), (Grade.ERROR, 2),
     (Grade.UNAVAILABLE, 2)],
)  # fmt: skip
def test_exit_code(grade: Grade, code: int) -> None:
    assert exit_code([found(Grade.PROVED), found(grade)]) == code


def test_a_refutation_that_is_wanted_and_one_that_went_away() -> None:
    assert exit_code([found(Grade.REFUTED, must_fail=True, expected=True)]) == 0
    assert exit_code([found(Grade.PROVED, must_fail=True, expected=False)]) == 1
    assert found(Grade.REFUTED, must_fail=True, expected=True).label == "REFUTED, as it must be"
    assert exit_code([found(Grade.UNKNOWN), found(Grade.REFUTED)]) == 1


def mutant(state: MutantState) -> MutantRecord:
    return MutantRecord(function="f", where="core/f.py:3", change="< becomes <=", state=state, invariants=("INV-2",))


def test_the_score_beside_a_refuted_proof_says_of_what_it_is_not() -> None:
    killed = mutant(MutantState.KILLED)
    whole, broken = [found(Grade.PROVED)], [found(Grade.PROVED), found(Grade.REFUTED)]
    assert score_line(whole, [killed]) == "1 of 1 mutants killed (100%), 0 shown equivalent" and unjudged(whole) == ()
    assert unjudged(broken) == ("INV-1",)
    why = "not of INV-1, of which an obligation is NOT as expected"
    assert score_line(broken, [killed]) == f"{why}; of the others: {score_line(whole, [killed])}"
    assert score_line(broken, []) == f"none: {why}"
    page = verification_markdown(report().model_copy(update={"evidence": tuple(broken), "mutants": (killed,)}))
    assert f"\nMutation score: {why}; of the others: 1 of 1 mutants killed" in page


def report() -> VerificationReport:
    return VerificationReport(
        created="now", revision="r", environment={}, evidence=(found(Grade.PROVED),), exit_code=0, seconds=1.0
    )


def test_report_carries_its_digest(tmp_path: Path) -> None:
    written = write_report(tmp_path / "a" / "report.json", report())
    data = json.loads((tmp_path / "a" / "report.json").read_text())
    assert data["digest"] == written and digest_holds(data)
    data["exit_code"] = 1
    assert not digest_holds(data)


def test_write_text_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    write_text(path, "old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("karat.core.report.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_a_lock_that_is_not_one(tmp_path: Path) -> None:
    assert read_lock(tmp_path / "absent") is None
    (tmp_path / "lock").write_text('{"proofs": 1}')
    with pytest.raises(EvidenceError, match="make verify"):
        read_lock(tmp_path / "lock")


LOCK_LINES = '{"solver": {}, "guards": {},\n "proofs": {"INV-1": {"INV-1.x": '


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        ((LOCK_LINES + "<<<<<<< HEAD").encode(), "expected value at line 2 column 34"),
        (LOCK_LINES.encode() + b"\xff", f"byte {len(LOCK_LINES)} is 0xff, which is not UTF-8 text"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ((LOCK_LINES + '{"claim": "c", "engine": "z3"}}}}').encode(),
         "proofs > INV-1 > INV-1.x > grade: Field required (and 1 more)"),
        (b'{"solver": {}, "guards": {}, "proofs": {}, "proof": {}}', "proof: Extra inputs are not permitted"),
    ],
    ids=["empty", "conflict", "not text", "nested", "field", "unknown field"],
)  # fmt: skip
def test_a_corrupted_lock_is_told_by_file_place_and_cure(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "proofs.lock"
    path.write_bytes(content)
    with pytest.raises(EvidenceError) as raised:
        read_lock(path)
    seen, required, cure = str(raised.value).splitlines()
    assert seen.startswith(f"{path} is not a proof lock: ") and why in seen
    assert required.startswith("  required  ") and cure.startswith(
        "  next      make verify, or python -m karat.proofs.verify"
    )


def test_error_text_says_what_to_do() -> None:
    assert str(KaratError("seen", required="need", next_step="do")).splitlines() == [
        "seen",
        "  required  need",
        "  next      do",
    ]


def load(source: str, folder: Path, name: str) -> ModuleType:
    """A module karat.<name> from source, as a fingerprint sees karat's own modules."""
    path = folder / f"{name}.py"
    path.write_text(source)
    module = ModuleType(f"karat.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


BASE = '''
LIMIT = 3
def inner(x):
    """Doc."""
    return x < LIMIT
def outer(x):
    # comment
    return inner(x) and x > 0
'''


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [("# comment", "# another comment", False), ('"""Doc."""', '"""Other."""', False), ("x > 0", "x  >  0", False),
     ("x > 0", "x >= 0", True), ("x < LIMIT", "x <= LIMIT", True), ("LIMIT = 3", "LIMIT = 4", True)],
)  # fmt: skip
def test_fingerprint_follows_meaning(old: str, new: str, changes: bool, tmp_path: Path) -> None:
    before = fingerprint(load(BASE, tmp_path, "fp_before").outer)
    after = fingerprint(load(BASE.replace(old, new), tmp_path, "fp_before").outer)
    assert (before != after) == changes


INDIRECT = """
import functools
class Base:
    def ends(self):
        return 1, 2
class Band(Base):
    width = 3
DEFAULT = Band()
@functools.cache
def table():
    return [1, 2, 3]
def inner(x, y):
    return x < y
half = functools.partial(inner, y=5)
def outer(x, limit=7):
    return x in table() and half(x) and DEFAULT.ends() and x < limit
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("[1, 2, 3]", "[1, 2, 4]"), ("return 1, 2", "return 1, 3"), ("width = 3", "width = 4"), ("y=5", "y=6"),
     ("x < y", "x <= y"), ("limit=7", "limit=8")],
)  # fmt: skip
def test_fingerprint_sees_through_caches_instances_partials_and_defaults(old: str, new: str, tmp_path: Path) -> None:
    before = fingerprint(load(INDIRECT, tmp_path, "fp_indirect").outer)
    after = fingerprint(load(INDIRECT.replace(old, new), tmp_path, "fp_indirect").outer)
    assert before != after


def test_a_function_swapped_in_memory_is_noticed(tmp_path: Path) -> None:
    module = load(BASE, tmp_path, "fp_swapped")
    assert loaded_as_written(module.outer)
    before = fingerprint(module.outer)
    exec(compile("def inner(x):\n    return True\n", str(tmp_path / "fp_swapped.py"), "exec"), module.__dict__)
    assert not loaded_as_written(module.inner)
    assert fingerprint(module.outer) != before


def test_fingerprint_is_stable_and_digest_canonical() -> None:
    assert fingerprint(schedule.wsd) == fingerprint(schedule.wsd)
    assert fingerprint(schedule.wsd) != fingerprint(schedule.cosine)
    assert digest({"b": 1, "a": [1.5, "x"]}) == digest({"a": [1.5, "x"], "b": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError, match="Out of range"):
        digest({"a": math.nan})
    assert digest({"a": str(Fraction(1, 3))})
