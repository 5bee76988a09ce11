"""Mutants: what is changed, what finds it out, what is equivalent, and that a survivor is never passed over."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from karat.core.evidence import MutantRecord, MutantState, Score, exit_code
from karat.core.formulas import halving, schedule
from karat.core.obligation import FloatLaw, Formula, Obligation
from karat.core.verdict import accepts
from karat.invariants import template
from karat.proofs.equivalence import equivalent
from karat.proofs.mutants import Rebound, Source
from karat.proofs.mutation import Against, Trial, about_changed, judge, targets, trials
from karat.proofs.reach import executable, reach
from karat.proofs.worker import decide, invariants

CLAMP = Source(schedule, frozenset({"clamp"}))


def obligations() -> dict[str, Obligation]:
    return {o.id: o for i in invariants() for o in i.obligations}


def changes(source: Source) -> set[str]:
    return {mutant.change for mutant in source.mutants}


def test_operators(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "def f(x, ops):\n    if not x < 2:\n        return -x + 1.5\n    total = 0\n    for k in range(3):\n"
        "        total += ops.minimum(x, k) * 2\n    return clamp(total, 0, 9)\n"
    )
    module = type(sys)("karat.example")
    module.__file__ = str(path)
    found = changes(Source(module, frozenset({"f"})))
    wanted = {
        "< becomes <=", "< becomes >", "2 becomes 3", "2 becomes 1", "not dropped", "if not x < 2 removed", "unary - dropped",
        "+ becomes -", "1.5 becomes 2.5", f"1.5 becomes {math.nextafter(1.5, 2)!r}", "the range ends at 3 + 1",
        "the range ends at 3 - 1", "minimum(…) becomes x", "minimum(…) becomes k", "minimum becomes maximum", "* becomes /",
        "clamp dropped", "total += ops.minimum(x, k) * 2 removed",
    }  # fmt: skip
    assert wanted <= found, wanted - found


def test_a_mutant_is_the_function_with_one_change_and_nothing_else_changes() -> None:
    place = next(m.place for m in CLAMP.mutants if m.change == "> becomes >=" or m.change == "> becomes <=")
    changed = CLAMP.build(place)
    assert changed.clamp(0.5, 0.0, 1.0) != schedule.clamp(0.5, 0.0, 1.0) or changed.clamp is not schedule.clamp
    assert schedule.clamp(0.5, 0.0, 1.0) == 0.5
    for mutant in CLAMP.mutants:
        assert CLAMP.build(mutant.place).wsd is not schedule.wsd
    fresh = Source(schedule, frozenset({"clamp"}))
    assert [m.change for m in fresh.mutants] == [m.change for m in CLAMP.mutants]  # every change was undone


def test_callers_see_the_mutant() -> None:
    place = next(m.place for m in CLAMP.mutants if m.change == "if x >= high removed")
    changed = CLAMP.build(place)
    assert changed.wsd(5, 0, 10, 20, 2.0, 1.0) == 2.0  # not clamped there
    assert changed.warmup_ramp(9, 5, 2.0) > 2.0 >= schedule.warmup_ramp(9, 5, 2.0)


def test_a_mutant_is_killed_by_the_law_meant_for_it() -> None:
    known = obligations()
    trial = Trial(
        schedule.__name__,
        frozenset({"clamp"}),
        tuple(Against(m.place, ("INV-8.clamp", "INV-8.clamp-ends")) for m in CLAMP.mutants),
    )
    records = judge(trial, known)
    assert len(records) == len(CLAMP.mutants) and {r.state for r in records} == {MutantState.KILLED}
    by_ends = {r.change for r in records if "clamp-ends" in r.by}
    assert {">= becomes >", "> becomes >="} <= by_ends  # they differ in the sign of zero alone
    assert all("INV-8.clamp" in r.by for r in records)
    assert all(r.where.startswith("core/formulas/schedule.py:") for r in records)


def test_without_an_obligation_every_mutant_survives() -> None:
    source = Source(halving, frozenset({"keep"}))
    trial = Trial(halving.__name__, frozenset({"keep"}), tuple(Against(m.place, ()) for m in source.mutants))
    assert {r.state for r in judge(trial, {})} == {MutantState.SURVIVED}


def test_a_weak_obligation_lets_mutants_survive() -> None:
    weak = Formula("INV-2.weak", "at least one survives", (halving.keep,), variables={"n": "int"},
                   given=lambda v: {"n >= 1": v.n >= 1}, show=lambda v, keep: keep(v.n) >= 1,
                   sample=lambda random: {"n": random.randint(1, 50)})  # fmt: skip
    source = Source(halving, frozenset({"keep"}))
    trial = Trial(halving.__name__, frozenset({"keep"}), tuple(Against(m.place, (weak.id,)) for m in source.mutants))
    states = [r.state for r in judge(trial, {weak.id: weak})]
    assert MutantState.SURVIVED in states and MutantState.KILLED in states


def nan_passes(lr: Any) -> Any:
    return not (lr < 1 or lr > 2)


def nan_fails(lr: Any) -> Any:
    return lr >= 1 and lr <= 2


def test_equal_over_the_reals_alone_is_not_equivalent() -> None:
    def show(v: Any, f: Any) -> Any:
        return f(v.lr) == ((v.lr >= 1) & (v.lr <= 2))

    real = Formula("INV-8.t", "in band", (nan_fails,), variables={"lr": "real"}, show=show,
                   sample=lambda random: {"lr": random.randint(0, 3)})  # fmt: skip
    double = FloatLaw("INV-8.u", "in band", (nan_fails,), variables=("lr",), show=show,
                      sample=lambda random: {"lr": random.uniform(0, 3)})  # fmt: skip
    changed = type(sys)(__name__)
    changed.__dict__.update(nan_fails=nan_passes)
    rebound = Rebound(changed)
    assert rebound(nan_fails) is nan_passes
    assert equivalent([real], changed, "nan_fails", rebound) == ""
    assert equivalent([real, double], changed, "nan_fails", rebound) == ""
    changed.__dict__.update(nan_fails=lambda lr: lr <= 2 and lr >= 1)
    assert "INV-8.u" in equivalent([real, double], changed, "nan_fails", Rebound(changed))


def test_every_formula_and_every_margin_is_a_target() -> None:
    found = targets(invariants())
    assert (
        "accepts" in found["karat.core.verdict"] and {"clamp", "wsd", "cosine"} <= found["karat.core.formulas.schedule"]
    )
    for invariant in invariants():
        assert invariant.margin.__name__ in found[invariant.margin.__module__]
    tried = trials([template.INVARIANT], invariants(), {})
    modules = {trial.module for trial in tried}
    assert template.INVARIANT.margin.__module__ in modules
    assert all(against.quick for trial in tried for against in trial.mutants)


def test_a_survivor_is_exit_code_1_and_is_named() -> None:
    record = MutantRecord(function="f", where="core/f.py:3", change="< becomes <=", state=MutantState.SURVIVED)
    assert exit_code([], [record]) == 1 and exit_code([], []) == 0
    assert str(Score.of([record])) == "0 of 1 mutants killed (0%), 0 shown equivalent, 1 SURVIVED"


def test_a_claim_of_another_module_sees_the_mutant_too() -> None:
    guard = obligations()["INV-8.accepts"]
    source = Source(sys.modules["karat.core.verdict"], frozenset({"accepts"}))
    place = next(m.place for m in source.mutants if m.change == "< becomes <=")
    changed = about_changed(guard, Rebound(source.build(place)))
    assert changed.about[0] is not accepts and not decide(changed).expected and decide(guard).expected


def test_reach_counts_lines_that_a_proof_ran() -> None:
    evidence = decide(obligations()["INV-8.clamp"])
    assert evidence.reach == {"schedule.py": evidence.reach["schedule.py"]} and len(evidence.reach["schedule.py"]) == 5
    of_schedule = next(f for f in reach([evidence]) if f.file.endswith("schedule.py"))
    assert of_schedule.proved == 5 and of_schedule.lines == len(executable(Path(str(schedule.__file__)))) > 20
    assert set(of_schedule.none).isdisjoint(evidence.reach["schedule.py"]) and of_schedule.none
    refuted = dataclasses.replace(obligations()["INV-8.clamp"], about=(lambda x, low, high: x,))
    assert all(f.proved == 0 for f in reach([decide(refuted)]))


@pytest.mark.parametrize("seed", [1, 2])
def test_mutation_is_the_same_at_every_run(seed: int) -> None:
    Random(seed).random()
    assert [m.change for m in Source(halving, frozenset({"keep"})).mutants] == [
        m.change for m in Source(halving, frozenset({"keep"})).mutants
    ]
