"""The Coq step against a corpus of files that pretend: each is found out, for its own reason, and spoils no other."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from karat.core.evidence import Evidence, Grade, exit_code
from karat.core.formulas import lucas, schedule
from karat.core.obligation import Counterpart, Theorem
from karat.core.report import read_lock
from karat.invariants import coq_constants
from karat.invariants.catalogue import BUILT_IN, find
from karat.invariants.coq_sources import FOLDER, closure, requires, source_digest
from karat.invariants.standing import LOCK, fingerprints
from karat.proofs import coq_build, coq_step
from karat.proofs.coq_build import toolchain
from karat.proofs.coq_step import accept, check, theorems_of
from karat.proofs.exploration import Outcome
from karat.proofs.verify import lock_of
from karat.trainer.explain import explain

CORPUS = Path(__file__).parent / "coq_corpus"
THEOREMS = theorems_of(o for invariant in BUILT_IN for o in invariant.obligations)
needs_coq = pytest.mark.skipif(toolchain() is None, reason=f"Coq is not installed: {coq_build.INSTALL}")


def _theorem(file: str, *counterparts: Counterpart) -> Theorem:
    return Theorem(f"INV-8.{file}", "a claim", (schedule.clamp,), file=file, theorem="claim", counterparts=counterparts)


def _names() -> list[str]:
    return sorted(path.stem for path in CORPUS.glob("*.v"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Outcome]]:
    """Every file of the corpus was honest when its statement was pinned, and then became what it is."""
    folder, build = tmp_path_factory.mktemp("coq"), tmp_path_factory.mktemp("build")
    honest = (CORPUS / "Honest.v").read_text(encoding="utf-8")
    theorems = [_theorem(name) for name in (*_names(), "Missing", "NotText")]
    for theorem in theorems:
        (folder / f"{theorem.file}.v").write_text(honest, encoding="utf-8")
    told, done = accept(theorems, 2, folder, build)
    assert done, told
    for name in _names():
        shutil.copy(CORPUS / f"{name}.v", folder / f"{name}.v")
    (folder / "Missing.v").unlink()
    (folder / "NotText.v").write_bytes(honest.encode() + b"(* \xff\xfe *)")
    limit = pytest.MonkeyPatch()
    limit.setattr(coq_build, "TIME_LIMIT", 12.0)
    limit.setattr(coq_build, "OUTPUT_BYTES", 8 << 20)
    found = check(theorems, 2, folder, build)
    yield {theorem.file: found[theorem.id] for theorem in theorems}
    limit.undo()


@needs_coq
@pytest.mark.parametrize(
    ("file", "grade", "why"),
    [
        ("Unfinished", Grade.ERROR, "an unfinished proof"),
        ("OwnAxiom", Grade.ERROR, "an axiom of its own"),
        ("AxiomInDisguise", Grade.ERROR, "an axiom of its own"),
        ("OpenHypothesis", Grade.ERROR, "Hypothesis outside a section"),
        (
            "SectionHypothesis",
            Grade.VACUOUS,
            "claim_satisfiable",
        ),  # it became a premise, which the companion does not show
        ("NoGuard", Grade.ERROR, "a check of the kernel switched off"),
        ("NoPositivity", Grade.ERROR, "a check of the kernel switched off"),
        ("ForeignAxiom", Grade.ERROR, "rests on more than the standard reals"),
        ("Weaker", Grade.ERROR, "S (S m)"),
        ("SameNameInside", Grade.ERROR, "a module, whose definitions could not be pinned"),
        ("DependentPremise", Grade.VACUOUS, "not shown to hold together"),
        ("EmptyType", Grade.VACUOUS, "not shown to hold together"),
        ("LetPremise", Grade.VACUOUS, "not shown to hold together"),
        ("NoProposition", Grade.ERROR, "no proposition"),
        ("AnotherWayToRequire", Grade.ERROR, "a way to require that is not followed"),
        ("Floods", Grade.ERROR, "Floods.v: "),
        ("NotText", Grade.ERROR, "NotText.v cannot be read"),
        ("OwnOrder", Grade.ERROR, "OwnOrder.le"),
        ("ConcludesTrue", Grade.VACUOUS, "its conclusion is True"),
        ("AssumesFalse", Grade.VACUOUS, "not shown to hold together"),
        ("NoCompanion", Grade.VACUOUS, "needs a lemma claim_satisfiable"),
        ("Broken", Grade.ERROR, "Broken.v: File"),
        ("NeedsBroken", Grade.ERROR, "requires Broken.v, which failed"),
        ("Loops", Grade.ERROR, "does not end within 12 s"),
        ("Missing", Grade.ERROR, "Missing.v is missing"),
    ],
)
def test_each_hostile_file_is_refused_for_its_reason(
    outcomes: Mapping[str, Outcome], file: str, grade: Grade, why: str
) -> None:
    assert outcomes[file].grade is grade and why in outcomes[file].detail, outcomes[file].detail


@needs_coq
def test_the_honest_one_among_them_is_proved(outcomes: Mapping[str, Outcome]) -> None:
    honest = outcomes["Honest"]
    assert honest.grade is Grade.PROVED, honest.detail
    assert honest.checks["theorem"] == "Honest.claim : forall n m : nat, (n <= m)%nat -> (n <= S m)%nat"
    assert honest.checks["axioms"] == "none" and honest.checks["hypotheses satisfiable"] == "Honest.claim_satisfiable"
    assert set(outcomes) == {*_names(), "Missing", "NotText"}


DOUBLE = """Require Import QArith.
From Karat Require Import Carrier.
Section D.
Context {K : Carrier}.
Definition double (x : K) : K := (x + x)%K.
End D.
Theorem claim : forall x : R, double (K := on_R) x = (2 * x)%R.
Proof. intro x. unfold double. simpl. ring. Qed.
"""


def _counterpart(run: Any) -> Counterpart:
    def sample(random: Random) -> dict[str, Any]:
        return {"x": Fraction(random.randint(-9, 9), random.randint(1, 5))}

    return Counterpart("Double.double", lucas.next_pair, "parts (Double.double (K := on_Q) {x})", sample, run, 50)


def _twice(values: Mapping[str, Any]) -> Any:
    return lucas.next_pair(values["x"], values["x"])[1]


def _square(values: Mapping[str, Any]) -> Any:
    return values["x"] * lucas.next_pair(0, values["x"])[1]


def _raises(values: Mapping[str, Any]) -> Any:
    return lucas.next_pair(values["y"], 0)


@needs_coq
def test_a_definition_that_is_not_the_running_function_is_an_error(tmp_path: Path) -> None:
    folder, build = tmp_path / "coq", tmp_path / "build"
    folder.mkdir()
    shutil.copy(FOLDER / "Carrier.v", folder)
    (folder / "Double.v").write_text(DOUBLE.replace("Require Import QArith.", "Require Import Reals QArith."))
    right, drifted, raising, unused, elsewhere = (
        _theorem("Double", one)
        for one in (
            _counterpart(_twice),
            _counterpart(_square),
            _counterpart(_raises),
            _counterpart(lambda v: 2 * v["x"]),
            dataclasses.replace(_counterpart(_twice), term="parts ({x} + {x})"),
        )
    )
    assert accept([right], 2, folder, build)[1]
    assert check([right], 2, folder, build)[right.id].grade is Grade.PROVED
    outcome = check([drifted], 2, folder, build)[drifted.id]
    assert (
        outcome.grade is Grade.ERROR and "Double.double is NOT core.formulas.lucas.next_pair: at x =" in outcome.detail
    )
    for theorem, why in (
        (raising, "not compared: KeyError"),
        (unused, "core.formulas.lucas.next_pair was not called"),
        (elsewhere, "the term does not mention Double.double"),
    ):
        outcome = check([theorem], 2, folder, build)[theorem.id]
        assert outcome.grade is Grade.ERROR and why in outcome.detail
    carrier = folder / "Carrier.v"
    text = carrier.read_text(encoding="utf-8")
    carrier.write_text(text.replace("Qred (x + y)", "Qred (y + x)"), encoding="utf-8")
    assert "Carrier.on_Q" in check([right], 2, folder, build)[right.id].detail
    carrier.write_text(text, encoding="utf-8")
    pins = folder / "expected" / "Double.toml"
    pins.write_text(
        pins.read_text(encoding="utf-8").replace("(2 * x)%R", "(3 * x)%R").replace('complete = "', 'complete = "0')
    )
    refused = check([right], 2, folder, build)[right.id]
    assert refused.grade is Grade.ERROR and "make accept-coq ID=INV-8" in refused.detail
    pins.write_text("not toml [")
    assert "Double.toml cannot be read" in check([right], 2, folder, build)[right.id].detail


@needs_coq
def test_a_constant_changed_in_the_code_is_refuted_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theorem = next(t for t in THEOREMS if t.file == "INV02_asha_threshold" and t.theorem == "default_certificate")
    held = coq_constants.constants()
    monkeypatch.setattr(
        coq_constants, "constants", lambda: held | {"certificate_gap": (held["certificate_gap"][0], Fraction(3))}
    )
    outcome = check([theorem], 2)[theorem.id]
    assert outcome.grade is Grade.REFUTED and outcome.counterexample is not None
    assert (
        "proofs/coq/INV02_asha_threshold.v proves it for certificate_gap = 2 # 1, the code has 3 # 1" in outcome.detail
    )


def test_a_constant_of_the_code_is_among_the_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    theorem = next(
        t for t in THEOREMS if t.file == "INV07_victory_gate" and t.theorem == "declared_levels_mean_all_below"
    )
    before, held = fingerprints(theorem), coq_constants.constants()
    where = held["victory_largest_alpha"][0]
    monkeypatch.setattr(coq_constants, "constants", lambda: held | {"victory_largest_alpha": (where, Fraction(1, 10))})
    assert fingerprints(theorem) != before
    monkeypatch.setattr(coq_step, "toolchain", lambda: None)
    assert check([theorem], 1)[theorem.id].grade is Grade.REFUTED  # known without Coq


def test_constants_are_what_the_code_has() -> None:
    assert coq_constants.differences() == {}


def _evidence(grade: Grade, theorem: Theorem = THEOREMS[0]) -> Evidence:
    return Evidence(
        obligation=theorem.id, invariant=theorem.invariant, claim="", kind="", engine="coq", grade=grade, must_fail=False,
        expected=grade is Grade.PROVED, about=fingerprints(theorem), demanded=grade is not Grade.UNAVAILABLE,
    )  # fmt: skip


def test_without_coq_theorems_are_unavailable_and_nothing_else_suffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coq_step, "toolchain", lambda: None)
    outcomes_ = check(THEOREMS[:3], 1)
    assert {o.grade for o in outcomes_.values()} == {Grade.UNAVAILABLE}
    assert all("apt-get install coq" in o.detail for o in outcomes_.values())
    absent = _evidence(Grade.UNAVAILABLE)
    assert not absent.missed and exit_code([absent]) == 0
    assert exit_code([_evidence(Grade.ERROR)]) == 2
    assert _evidence(Grade.ERROR).model_copy(update={"demanded": False}).missed  # only what is unavailable is excused
    lock = read_lock(LOCK)
    assert lock is not None
    kept = lock_of([_evidence(Grade.PROVED, THEOREMS[1]), absent], [], lock, {}).proofs[absent.invariant]
    theorems = [theorem.id for theorem in THEOREMS if theorem.invariant == absent.invariant]
    assert (
        list(kept) == theorems and kept[absent.obligation].grade == "PROVED"
    )  # as they were, in the catalogue's order


def test_a_library_that_is_missing_is_unavailable_too() -> None:
    told = 'File "./X.v", line 7: Error: Cannot find a physical path bound to logical path Core with prefix Flocq.'
    assert coq_build.Compiled("X", 0.0, told).without_library
    assert not coq_build.Compiled(
        "X", 0.0, 'File "./X.v", line 7: Error: The reference Flocq was not found'
    ).without_library


def test_every_theorem_is_in_the_lock_as_it_is_now() -> None:
    lock = read_lock(LOCK)
    assert lock is not None and len(THEOREMS) > 150
    for theorem in THEOREMS:
        proof = lock.proofs[theorem.invariant][theorem.id]
        assert proof.grade == "PROVED" and proof.about == fingerprints(theorem)


def test_explain_shows_z3_and_coq_side_by_side() -> None:
    page = explain(find("INV-11"), read_lock(LOCK))
    assert re.search(r"PROVED\s+z3\s", page) and re.search(r"PROVED\s+coq\s", page)
    assert (
        "product_doubly_stochastic : forall (n : nat)" in page and "core.formulas.birkhoff.matmul at 200 points" in page
    )


def test_what_a_file_requires_is_found_however_it_is_written() -> None:
    assert requires("From Karat Require Import Carrier\n  Sums.") == ("Carrier", "Sums")
    assert requires("From Karat Require Constants. From Karat Require Export Golden.") == ("Constants", "Golden")
    assert closure("INV08_anchors").index("Carrier") < closure("INV08_anchors").index("GoldenNumber")


def test_a_digest_follows_what_is_required_and_what_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "A.v").write_text("Definition a := 1.")
    (tmp_path / "B.v").write_text("From Karat Require Import A.")
    before = source_digest("B", tmp_path)
    (tmp_path / "A.v").write_text("Definition a := 2.")
    changed = source_digest("B", tmp_path)
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "A.toml").write_text("")
    assert len({before, changed, source_digest("B", tmp_path)}) == 3


@needs_coq
def test_what_did_not_change_is_not_compiled_again(tmp_path: Path) -> None:
    tool = toolchain()
    assert tool is not None
    folder, build = tmp_path / "coq", tmp_path / "build"
    folder.mkdir()
    (folder / "A.v").write_text("Definition a := 1.")
    (folder / "B.v").write_text("From Karat Require Import A. Definition b := a.")
    first = coq_build.compile_all(["B"], tool, 2, folder, build)
    assert not any(one.failure or one.kept for one in first.values())
    (build / "B.vo").write_bytes((build / "B.vo").read_bytes()[:100])  # cut short: compiled again
    assert not coq_build.compile_all(["B"], tool, 2, folder, build)["B"].kept
    stamp = os.stat(build / "A.vo").st_mtime_ns
    assert all(one.kept for one in coq_build.compile_all(["B"], tool, 2, folder, build).values())
    (folder / "A.v").write_text("Definition a := 2.")
    time.sleep(0.01)
    again = coq_build.compile_all(["B"], tool, 2, folder, build)
    assert not any(one.kept or one.failure for one in again.values()) and os.stat(build / "A.vo").st_mtime_ns > stamp
