"""LIMIT-1 run-limits: the comparisons by which every rule of the RUN family judges its number.

Claim: the guard of a rule accepts a double iff the number is within its limit, for all doubles, NaN and infinities too.
Why it matters: a rule is only as good as the comparison that it ends in; a `<` for a `<=`, a NaN that passes, or a
difference that overflows would silence a rule on exactly the run that it is for.
Source: the forms of core/formulas/limits.py, which `Rule.margin` calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from karat.core import verdict
from karat.core.formulas import limits
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import FloatLaw, Formula, Obligation
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops

LARGEST = 2.0**1000
"""Limits and declared values up to here: no difference of two of them overflows."""


@dataclass(frozen=True)
class Limits:
    """The ends of a range."""

    low: float = 0.0
    high: float = 1.0


DEFAULT = Limits()


def margin(values: Mapping[str, Any], declared: Limits, ops: Ops = FLOAT) -> Number:
    """The distance to the nearer end."""
    return limits.within(values["value"], declared.low, declared.high, ops)


def _moderate(x: Any) -> Any:
    return (x >= -LARGEST) & (x <= LARGEST)


def _given(*ends: str) -> Any:
    """Ends up to LARGEST; a value up to it too, or none at all: NaN or an infinity."""

    def given(v: Any) -> dict[str, Any]:
        value = v.value
        odd = (value != value) | (value == math.inf) | (value == -math.inf)
        bounded = {f"|{name}| <= 2^1000": _moderate(getattr(v, name)) for name in ends}
        return bounded | {"|value| <= 2^1000, or no finite number": _moderate(value) | odd}

    return given


def _at_most(v: Any, at_most: Any, accepts: Any) -> Any:
    return accepts(at_most(v.value, v.bound)) == ((v.value <= v.bound) & (v.value >= -LARGEST))


def _at_least(v: Any, at_least: Any, accepts: Any) -> Any:
    return accepts(at_least(v.value, v.bound)) == ((v.value >= v.bound) & (v.value <= LARGEST))


def _within(v: Any, within: Any, accepts: Any) -> Any:
    return accepts(within(v.value, v.low, v.high, v.ops)) == ((v.value >= v.low) & (v.value <= v.high))


def _agrees(v: Any, agrees: Any, accepts: Any) -> Any:
    off = v.value - v.declared
    return accepts(agrees(v.value, v.declared, v.tolerance, v.ops)) == ((off <= v.tolerance) & (-off <= v.tolerance))


def _own(v: Any, distance: Any, accepts: Any) -> Any:
    return accepts(distance({"value": v.value}, DEFAULT, v.ops)) == ((v.value >= 0.0) & (v.value <= 1.0))


def _real_distances(v: Any, at_most: Any, at_least: Any, within: Any, agrees: Any) -> Any:
    low, high = v.bound, v.other
    near = within(v.value, low, high, v.ops)
    off = agrees(v.value, v.bound, v.other, v.ops)
    return [
        at_most(v.value, v.bound) == v.bound - v.value,
        at_least(v.value, v.bound) == v.value - v.bound,
        (near <= v.value - low) & (near <= high - v.value),
        (near == v.value - low) | (near == high - v.value),
        (off <= v.other - (v.value - v.bound)) & (off <= v.other + (v.value - v.bound)),
        (off == v.other - (v.value - v.bound)) | (off == v.other + (v.value - v.bound)),
    ]


def _doubles(*names: str) -> Any:
    def sample(random: Random) -> dict[str, float]:
        near = [0.0, -0.0, 1.0, math.nextafter(1.0, 2), math.nextafter(1.0, 0), 5e-324, 1e300]
        drawn = {name: random.choice([*near, random.uniform(-2, 2)]) for name in names}
        return drawn | {"value": random.choice([*drawn.values(), *near, math.nan, math.inf, -math.inf])}

    return sample


def _reals(random: Random) -> dict[str, Fraction]:
    return {name: Fraction(random.randint(-8, 8), 4) for name in ("value", "bound", "other")}


_REALS = {"value": "real", "bound": "real", "other": "real"}

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("LIMIT-1.distances", "each form is the signed distance of its number to its limit, or to the nearer of two",
            (limits.at_most, limits.at_least, limits.within, limits.agrees), variables=_REALS, show=_real_distances,
            sample=_reals),
    FloatLaw("LIMIT-1.at-most", "a rule of the form `at most` accepts a double iff it is finite and <= its bound",
             (limits.at_most, verdict.accepts), variables=("value", "bound"), given=_given("bound"), show=_at_most,
             sample=_doubles("bound")),
    FloatLaw("LIMIT-1.at-least", "a rule of the form `at least` accepts a double iff it is finite and >= its bound",
             (limits.at_least, verdict.accepts), variables=("value", "bound"), given=_given("bound"), show=_at_least,
             sample=_doubles("bound")),
    FloatLaw("LIMIT-1.within", "a rule of the form `within` accepts a double iff it is between its ends, or is one",
             (limits.within, verdict.accepts), variables=("value", "low", "high"), given=_given("low", "high"),
             show=_within, sample=_doubles("low", "high")),
    FloatLaw("LIMIT-1.agrees", "a rule of the form `agrees with` accepts a double iff its difference to what was declared, "
             "rounded once, is at most the tolerance", (limits.agrees, verdict.accepts),
             variables=("value", "declared", "tolerance"), given=_given("declared", "tolerance"), show=_agrees,
             sample=_doubles("declared", "tolerance")),
    FloatLaw("LIMIT-1.guard", "the record's own margin accepts a double iff it is in [0, 1]", (margin, verdict.accepts),
             variables=("value",), given=_given(), show=_own, sample=_doubles("value")),
)  # fmt: skip


def bounds(declared: Limits) -> tuple[Bound, ...]:
    """The ends, as declared."""
    return (Bound("low", "declared", f"{declared.low:g}"), Bound("high", "declared", f"{declared.high:g}"))


def required(declared: Limits) -> str:
    """The condition as one line."""
    return f"{declared.low:g} <= value <= {declared.high:g}"


INVARIANT = Invariant(
    id="LIMIT-1",
    slug="run-limits",
    statement="A rule of the RUN family accepts a number iff it is within its limit; what is no finite number is outside.",
    why="A comparison that lets NaN through, or stops one short of its end, silences a rule on the run that it is for.",
    unit="",
    sources=("core/formulas/limits.py, which Rule.margin calls for every rule of invariants/run/",),
    limits=(
        "What reads the number off a run is not proved: docs/rules/ says of each rule what it cannot see.",
        "Values and ends up to 2^1000 in magnitude.",
    ),
    phases=(Phase.BEFORE_STEP,),
    quantities=(Quantity("value", "value", "", "the number that a rule judges"),),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries({"value": st.one_of(st.floats(-2, 2), st.floats())}),
    holds=(Witness({"value": 0.0}, "the lower end"), Witness({"value": 1.0}, "the upper end")),
    violates=(Witness({"value": math.nextafter(1.0, 2)}, "just above"), Witness({"value": -5e-324}, "just below")),
    family="LIMIT",
)
