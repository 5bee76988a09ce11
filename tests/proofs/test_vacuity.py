"""Five sabotages, each caught by the layer meant for it; and what else a proof must survive to say anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from karat.core.errors import EvidenceError
from karat.core.evidence import Evidence, Grade
from karat.core.obligation import FloatLaw, Formula, Obligation, implies
from karat.core.report import read_lock
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv08_lr_band as inv08
from karat.invariants.catalogue import find
from karat.invariants.standing import LOCK, demand_current, standing
from karat.proofs.worker import decide, invariants


def named(obligation_id: str) -> Obligation:
    return next(o for i in invariants() for o in i.obligations if o.id == obligation_id)


# -- the five --


def test_contradictory_hypotheses_are_caught_as_vacuous() -> None:
    plateau = named("INV-8.plateau")
    assert isinstance(plateau, Formula)
    given = plateau.given
    evidence = decide(dataclasses.replace(plateau, given=lambda v: {**given(v), "and no step": v.step < 0}))
    assert evidence.grade is Grade.VACUOUS and "contradict" in evidence.detail


def test_a_bound_off_by_one_ulp_is_caught_by_exact_arithmetic() -> None:
    inward = named("INV-8.inward")

    def off_by_an_ulp(n: int, k: int) -> Any:
        low, high = inv08.Band(n, k).ends
        return SimpleNamespace(ends=(low, math.nextafter(high, 1)))

    evidence = decide(dataclasses.replace(inward, about=(off_by_an_ulp,)))
    assert evidence.grade is Grade.REFUTED and evidence.engine == "exhaustive" and "ends" in evidence.detail


def test_less_than_for_at_most_is_caught_by_the_law_of_float64() -> None:
    def strict_margin(values: Any, domain: Any, ops: Any) -> Any:
        a = values["absmax"]
        inside = ops.minimum(domain.high - a, a - domain.low)
        return ops.where(a == 0, domain.high, ops.where(a < domain.high, inside, -1.0))

    guard = named("INV-3.guard")
    evidence = decide(dataclasses.replace(guard, about=(strict_margin, guard.about[1])))
    assert evidence.grade is Grade.REFUTED and evidence.engine == "z3 fp"
    assert evidence.counterexample is not None and evidence.counterexample.reproduced
    assert float(evidence.counterexample.values["a"]) == inv03.LARGEST


def accepted(lr: Any, low: Any, high: Any) -> Any:
    """Equal to low <= lr <= high over the reals, and true of a NaN."""
    return not (lr < low or lr > high)


def test_a_nan_accepted_is_seen_by_floats_and_not_by_reals() -> None:
    def show(v: Any, accepts: Any) -> Any:
        return accepts(v.lr, 1, 2) == ((v.lr >= 1) & (v.lr <= 2))

    def real(random: Random) -> dict[str, Any]:
        return {"lr": Fraction(random.randint(0, 30), 10)}

    def double(random: Random) -> dict[str, float]:
        return {"lr": random.uniform(0, 3)}

    over_reals = Formula("INV-8.t", "in band", (accepted,), variables={"lr": "real"}, show=show, sample=real)
    assert decide(over_reals).grade is Grade.PROVED  # the sabotage is invisible there
    over_doubles = FloatLaw("INV-8.t", "in band", (accepted,), variables=("lr",), show=show, sample=double)
    evidence = decide(over_doubles)
    assert evidence.grade is Grade.REFUTED and evidence.counterexample is not None
    assert math.isnan(float(evidence.counterexample.values["lr"]))


def test_a_formula_changed_after_proving_is_caught_by_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    band = find("INV-8")
    assert standing(band, read_lock(LOCK)).current

    def margin(values: Any, declared: Any, ops: Any = None) -> Any:
        return 1.0

    monkeypatch.setattr(margin, "__qualname__", "margin")
    changed = dataclasses.replace(band, margin=margin)
    status = standing(changed, read_lock(LOCK))
    assert not status.current and status.grade == "UNPROVED" and status.stale
    with pytest.raises(EvidenceError, match="changed since the last proof"):
        demand_current([status])


# -- the checks on every proof --


def square(x: Any) -> Any:
    return x * x


def in_unit(v: Any) -> dict[str, Any]:
    return {"0 <= x": v.x >= 0, "x <= 1": v.x <= 1, "x <= 2": v.x <= 2}


def formula(show: Callable[..., Any], given: Callable[..., Any] = in_unit) -> Evidence:
    def sample(random: Random) -> dict[str, Any]:
        return {"x": Fraction(random.randint(0, 10), 10)}

    return decide(
        Formula("INV-8.t", "a claim", (square,), variables={"x": "real"}, given=given, show=show, sample=sample)
    )


def test_needed_and_redundant_hypotheses_are_told_apart() -> None:
    evidence = formula(lambda v, f: f(v.x) <= v.x)
    assert evidence.grade is Grade.PROVED
    assert evidence.checks["hypotheses needed"] == "needed: 0 <= x; x <= 1. redundant: x <= 2"


def test_a_condition_that_does_not_look_at_the_function_is_vacuous() -> None:
    evidence = formula(lambda v, f: [f(v.x) <= v.x, v.x <= 3])
    assert evidence.grade is Grade.VACUOUS and "condition 2 of 2" in evidence.detail


def test_an_antecedent_that_is_never_true_is_vacuous() -> None:
    evidence = formula(lambda v, f: [f(v.x) <= v.x, implies(f(v.x) > 2, f(v.x) > 77)])
    assert evidence.grade is Grade.VACUOUS
    assert "test_vacuity.py" in evidence.detail and "antecedent" in evidence.detail


def test_a_bound_that_never_decides_is_vacuous() -> None:
    def show(v: Any, f: Any) -> Any:
        return (f(v.x) <= Fraction(1, 4)) == ((v.x <= Fraction(1, 2)) & (v.x <= 5))

    evidence = formula(show)
    assert evidence.grade is Grade.VACUOUS and "comparison 2 false" in evidence.detail


def test_both_sides_are_counted() -> None:
    def show(v: Any, f: Any) -> Any:
        return (f(v.x) <= Fraction(1, 4)) == (v.x <= Fraction(1, 2))

    evidence = formula(show)
    assert evidence.grade is Grade.PROVED, evidence.detail
    assert evidence.checks["both sides"] == "2 of 2 sides of its conditions are reached"
