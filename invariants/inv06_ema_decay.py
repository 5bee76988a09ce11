"""INV-6 ema-decay: the decay of the averaged weights follows its declared schedule, and the averages stay in the hull.

Claim: the decay used by each update is the declared cosine from `start` to `end` at that step, lies in [start, end] and
never falls; every averaged weight lies between its old value and the weight, ends included.
Why it matters: a decay that is stuck, or that falls back, averages over another window than the one declared, and the
loss of the raw weights does not show it.
Source: the seed's INV-6, whose theorems never mention a schedule. It declares a cosine from 0.996 to 1.0; its code runs
a straight line in one place and the constant 0.996 in another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core import verdict
from karat.core.bounds import Interval
from karat.core.formulas import ema
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Checked, Exhaustive, FloatLaw, Formula, Obligation, Property, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Averaging:
    """The declared decay, as decimals, and how often the averages are compared with their hull, in updates."""

    start: Fraction = Fraction(996, 1000)
    end: Fraction = Fraction(1)
    every: int = 50

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The float64 ends, rounded inward: the schedule runs from one to the other."""
        interval = Interval(self.start, self.end)
        return interval.at_least, interval.at_most


def margin(values: Mapping[str, Any], averaging: Averaging, ops: Ops = FLOAT) -> Number:
    """min(decay - start, end - decay, -|decay - scheduled|, decay - previous, -outside); negative where one is."""
    low, high = averaging.ends
    decay = values["decay"]
    in_band = ops.minimum(decay - low, high - decay)
    on_schedule = -ops.absolute(decay - values["scheduled"])
    risen = decay - values["previous"]
    return ops.minimum(ops.minimum(in_band, on_schedule), ops.minimum(risen, -values["outside"]))


DEFAULT = Averaging()
DECAY = {"step": "int", "total": "int", "start": "real", "end": "real"}
MIX = ("average", "weight", "decay")
LONGEST = 160


def _counted(v: Any) -> dict[str, Any]:
    return {"step >= 0": v.step >= 0, "total >= 1": v.total >= 1, "start <= end": v.start <= v.end}


def _band(v: Any, decay_at: Any) -> Any:
    decay = decay_at(v.step, v.total, v.start, v.end, v.ops)
    return [
        v.start <= decay,
        decay <= v.end,
        implies(v.step == 0, decay == v.start),
        implies(v.step >= v.total, decay == v.end),
    ]


def _shape(v: Any, decay_at: Any) -> Any:
    decay = decay_at(v.step, v.total, v.start, v.end, v.ops)
    if v.step >= v.total:
        return decay == v.end
    off = 2 * (v.end - decay) - (v.end - v.start) * (1 + v.ops.cospi(v.step / v.total))
    slack = (v.end - v.start) * Fraction(1, 10**12)  # zero over the reals; cos on numbers is a double
    return [off <= slack, -slack <= off]


def _never_falls(v: Any, decay_at: Any) -> Any:
    arguments = (v.total, v.start, v.end, v.ops)
    return decay_at(v.step, *arguments) <= decay_at(v.later, *arguments)


def _hull(v: Any, averaged: Any) -> Any:
    y = averaged(v.average, v.weight, v.decay, v.ops)
    low, high = v.ops.minimum(v.average, v.weight), v.ops.maximum(v.average, v.weight)
    return [low <= y, y <= high, y == v.decay * v.average + (1 - v.decay) * v.weight]


def _sample(random: Random) -> dict[str, Any]:
    total = random.randint(1, 60)
    step = random.choice([0, random.randint(0, total), total + random.randint(0, 9)])
    start = Fraction(random.randint(0, 999), 1000)
    end = start + (1 - start) * Fraction(random.randint(0, 10), 10)
    return {"step": step, "total": total, "later": step + random.randint(0, 40), "start": start, "end": end}


def _sample_mix(random: Random) -> dict[str, Any]:
    average, weight = (Fraction(random.randint(-999, 999), 100) for _ in range(2))
    return {"average": average, "weight": weight, "decay": Fraction(random.randint(0, 100), 100)}


def _doubles_of_mix(random: Random) -> dict[str, float]:
    """Decays of the band and others: a decay outside [0, 1] does leave the hull before the update is held."""
    average = random.uniform(-1, 1)
    weight = random.choice([average, average * (1 + 2.0**-52), random.uniform(-1, 1), math.inf])
    return {
        "average": average,
        "weight": weight,
        "decay": random.choice([random.uniform(0.996, 1), 1.0, 0.0, -1.0, 2.0]),
    }


def _held(v: Any, averaged: Any) -> Any:
    y = averaged(v.average, v.weight, v.decay, v.ops)
    low, high = v.ops.minimum(v.average, v.weight), v.ops.maximum(v.average, v.weight)
    return ((low <= y) & (y <= high)) | (y != y)


def _blended(v: Any, blend: Any) -> Any:
    y = blend(v.cosine, v.start, v.end)
    return [v.start <= y, y <= v.end]


def _sample_blend(random: Random) -> dict[str, float]:
    start = random.random()
    return {"cosine": random.choice([random.uniform(-1, 1), -1.0, 1.0, math.nan, 3.0, -3.0]), "start": start,
            "end": start + (1 - start) * random.random()}  # fmt: skip


def _float_decay(decay_at: Any) -> Checked:
    """In float64, from the inward start to the end: every step of every total, and three steps past it."""
    cases = 0
    low, high = DEFAULT.ends
    for total in range(1, LONGEST + 1):
        previous = low
        for step in range(total + 4):
            decay = decay_at(step, total, low, high)
            where = f"step {step} of {total}: decay = {decay!r}"
            ideal = high - (high - low) * (1 + math.cos(math.pi * min(step / total, 1))) / 2
            if not low <= decay <= high or decay < previous or abs(decay - ideal) > 1e-15:
                return Checked(cases, f"{where}, by the cosine {ideal!r}, after {previous!r}")
            if (step == 0 and decay != low) or (step >= total and decay != high):
                return Checked(cases, f"{where} is not the end point")
            previous = decay
            cases += 1
    return Checked(cases)


def _stuck(step: Any, total: Any, start: Any, end: Any, ops: Ops = FLOAT) -> Any:
    return start


def _straight(step: Any, total: Any, start: Any, end: Any, ops: Ops = FLOAT) -> Any:
    return start + (end - start) * min(step / total, 1)


def _periodic(step: Any, total: Any, start: Any, end: Any, ops: Ops = FLOAT) -> Any:
    return ema.blend(ops.cospi(step / total), start, end)


def _unheld(average: Any, weight: Any, decay: Any, ops: Ops = FLOAT) -> Any:
    return decay * average + (1 - decay) * weight


def _in_the_hull(seed: int, averaged: Any) -> bool:
    """A hundred updates of a seed: weights close to their average, far from it, and equal to it."""
    random = Random(seed)
    for _ in range(100):
        average = random.uniform(-1, 1) * 10.0 ** random.randint(-300, 300)
        near = average + random.randint(-3, 3) * math.ulp(average)
        weight = random.choice([near, near, random.uniform(-1, 1) * 10.0 ** random.randint(-300, 300)])
        y = averaged(average, weight, random.uniform(0.996, 1))
        if not min(average, weight) <= y <= max(average, weight):
            return False
    return True


def _ends_are_inward(declared: Any) -> Checked:
    """0.996 as a double is below 249/250: the schedule starts at the next one."""
    cases = 0
    for thousandths in range(1000):
        start = Fraction(thousandths, 1000)
        low, high = declared(start, Fraction(1)).ends
        if not start <= Fraction(low) <= start + Fraction(1, 2**52) or high != 1.0:
            return Checked(cases, f"Averaging({start}, 1).ends = {(low, high)}")
        cases += 1
    return Checked(cases)


def _rounded_to_nearest(start: Fraction, end: Fraction) -> SimpleNamespace:
    return SimpleNamespace(ends=(float(start), float(end)))


def _observation(v: Any) -> dict[str, Any]:
    return {"decay": v.decay, "scheduled": v.scheduled, "previous": v.previous, "outside": v.outside}


def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    accepted = accepts(distance(_observation(v), DEFAULT, v.ops))
    low, high = DEFAULT.ends
    in_band = (low <= v.decay) & (v.decay <= high)
    return accepted == (in_band & (v.decay == v.scheduled) & (v.previous <= v.decay) & (v.outside <= 0.0))


def _margin_is(v: Any, distance: Any) -> Any:
    found = distance(_observation(v), SimpleNamespace(ends=(v.low, v.high)), v.ops)
    gap = v.ops.absolute(v.decay - v.scheduled)
    parts = [v.decay - v.low, v.high - v.decay, -gap, v.decay - v.previous, -v.outside]
    least = (found == parts[0]) | (found == parts[1]) | (found == parts[2]) | (found == parts[3]) | (found == parts[4])
    return [least, *[found <= part for part in parts]]


def _sample_observation(random: Random) -> dict[str, Any]:
    decay = Fraction(random.randint(9950, 10010), 10_000)
    return {"decay": decay, "scheduled": random.choice([decay, decay - Fraction(1, 500)]), "low": Fraction(249, 250),
            "high": Fraction(1), "previous": decay - Fraction(random.randint(-2, 5), 1000),
            "outside": random.choice([Fraction(0), Fraction(1, 10**6)])}  # fmt: skip


def _any_observation(random: Random) -> dict[str, float]:
    low, high = DEFAULT.ends
    decay = random.choice([random.uniform(low, high), low, high, math.nan, 0.9, 1.1])
    return {"decay": decay, "scheduled": random.choice([decay if decay == decay else low, low]),
            "previous": random.choice([low, high]), "outside": random.choice([0.0, 1e-9, -1.0])}  # fmt: skip


_DECAY, _MIX = (ema.decay_at,), (ema.averaged,)
_OBSERVED = ("decay", "scheduled", "previous", "outside")

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-6.band", "the decay is in [start, end], is the start at step 0 and the end from the last step on, for all "
            "steps and totals", _DECAY, variables=DECAY, given=_counted, show=_band, sample=_sample),
    Formula("INV-6.shape", "the decay is end - (end - start)(1 + cos(pi step/total))/2 at every step before the end", _DECAY,
            variables=DECAY, given=_counted, show=_shape, sample=_sample),
    Formula("INV-6.never-falls", "the decay never falls, at any step up to any later one, past the end too", _DECAY,
            variables=DECAY | {"later": "int"}, show=_never_falls, sample=_sample,
            given=lambda v: _counted(v) | {"step <= later": v.step <= v.later}),
    FloatLaw("INV-6.returned", "the double that is returned is in [start, end], whatever its cosine, products and quotients "
             "round to", (ema.blend,), variables=("cosine", "start", "end"), show=_blended, sample=_sample_blend,
             given=lambda v: {"start <= end": v.start <= v.end}),
    Exhaustive("INV-6.float-decay", f"in float64 the decay from 0.996 to 1 follows the cosine, never falls and hits both ends: "
               f"every step of every total up to {LONGEST}, and past it", _DECAY, check=_float_decay,
               rivals={"stuck at 0.996": (_stuck,), "a straight line": (_straight,), "not held at the end": (_periodic,)}),
    Formula("INV-6.hull", "the updated average is decay·average + (1 - decay)·weight and lies between the two", _MIX,
            variables=dict.fromkeys(MIX, "real"), show=_hull, sample=_sample_mix,
            given=lambda v: {"0 <= decay <= 1": (v.decay >= 0) & (v.decay <= 1)}),
    FloatLaw("INV-6.held", "the updated average lies between the old one and the weight, or is NaN: for all doubles, whatever "
             "products round to", _MIX, variables=MIX, show=_held, sample=_doubles_of_mix),
    Property("INV-6.float-hull", "in float64 the updated average of finite numbers is a number between the two", _MIX,
             strategy=lambda st: st.integers(0, 2**32), holds=_in_the_hull, rivals={"not held": (_unheld,)}, examples=300),
    Exhaustive("INV-6.inward", "the float64 ends of the declared decay lie inside it and within an ulp: starts 0 to 0.999",
               (Averaging,), check=_ends_are_inward, rivals={"rounded to nearest": (_rounded_to_nearest,)}),
    Formula("INV-6.margin", "the guard's margin is the least of its five distances", (margin,),
            variables=dict.fromkeys((*_OBSERVED, "low", "high"), "real"), show=_margin_is, sample=_sample_observation),
    FloatLaw("INV-6.guard", "the guard accepts iff the decay is in the band, equals its schedule, has not fallen and the "
             "averages left their hull by nothing: for all doubles", (margin, verdict.accepts), variables=_OBSERVED,
             show=_guard, sample=_any_observation),
)  # fmt: skip


def bounds(averaging: Averaging) -> tuple[Bound, ...]:
    """The decay as cited."""
    low, high = averaging.ends
    return (
        Bound("start", f"{averaging.start}, rounded inward", f"{low!r}"),
        Bound("end", f"{averaging.end}, rounded inward", f"{high!r}"),
        Bound("decay", "end - (end - start)(1 + cos(pi step/steps))/2", "rising from start to end"),
        Bound("hull", "min(average, weight) <= average' <= max(average, weight)", f"every {averaging.every} updates"),
    )


def required(averaging: Averaging) -> str:
    """The condition as one line."""
    return (
        f"{float(averaging.start):g} <= decay <= {float(averaging.end):g}, the cosine of its step, never falling; each "
        f"average between its old value and the weight (all of them at every {averaging.every}th update)"
    )


def _values(decay: float, scheduled: float, previous: float, outside: float) -> dict[str, Any]:
    return {"decay": decay, "scheduled": scheduled, "previous": previous, "outside": outside}


_LOW, _HIGH = DEFAULT.ends

INVARIANT = Invariant(
    id="INV-6",
    slug="ema-decay",
    statement="The decay of the averaged weights is the declared cosine at every step, and every average lies between its "
    "old value and the weight.",
    why="A decay that is stuck or falls averages over another window than declared; the raw weights' loss does not show it.",
    unit="",
    sources=("the seed's INV-6, corrected", "BYOL: Grill et al. 2020, arXiv 2006.07733"),
    limits=(
        "That an average of weights is better than the weights is not claimed: its loss is reported beside theirs.",
        "The hull is compared at the declared interval, in the weights' own precision; in between it rests on the proof and "
        "on torch's minimum and maximum.",
        "The update is computed by torch's lerp, which is tested against the proved formula to one ulp.",
    ),
    phases=(Phase.START, Phase.BEFORE_STEP, Phase.FINISH),
    quantities=(
        Quantity("decay", "decay", "", "the decay that the last update used"),
        Quantity("scheduled", "scheduled", "", "the declared decay at that step"),
        Quantity("previous", "previous", "", "the decay of the update before it"),
        Quantity("outside", "outside", "", "how far an average is outside its hull, the worst of those compared"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.one_of(
        st.floats(_LOW, 1).map(lambda d: _values(d, d, _LOW, 0.0)),
        st.tuples(st.floats(0.99, 1.01), st.floats(0.99, 1.01), st.floats(), st.floats(0, 1)).map(
            lambda x: _values(*x)
        ),
    ),
    holds=(
        Witness(_values(0.998, 0.998, 0.9979, 0.0), "half-way"),
        Witness(_values(_LOW, _LOW, _LOW, 0.0), "the first update"),
        Witness(_values(1.0, 1.0, 0.9999, 0.0), "the end"),
    ),
    violates=(
        Witness(_values(0.996, 0.996, 0.996, 0.0), "the double 0.996, which is below 249/250"),
        Witness(_values(_LOW, 0.998, _LOW, 0.0), "stuck at the start, as in the seed's trainer"),
        Witness(_values(math.nextafter(1.0, 2), math.nextafter(1.0, 2), 0.999, 0.0), "one double above the end"),
        Witness(_values(0.997, 0.997, 0.998, 0.0), "a decay that falls back"),
        Witness(_values(0.998, 0.998, 0.9979, 1e-9), "an average outside its hull"),
    ),
)
