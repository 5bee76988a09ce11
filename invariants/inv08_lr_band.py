"""INV-8 lr-band: the learning rate stays in the golden band around its anchor.

Claim: on the plateau anchor/phi^k <= lr <= anchor·phi^k with anchor = phi^-n / 2 exactly; at every step 0 <= lr and
lr <= anchor·phi^k. Default n = 10, k = 1: [0.0025125…, 0.0065777…] around 0.0040652….
Why it matters: a schedule that runs past its end, a scheduler stepped twice or a rate set by hand trains on without a
word. In the seed's own log the rate climbs back to its peak after the declared decay.
Source: the band is the seed's idea; its stated identity lr = 0.004 = alpha_phi/phi^3 is false (it is 0.0279) and is
kept below as a refutation. Limits and known ways to break it: LIMITS.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core import verdict
from karat.core.bounds import Interval
from karat.core.formulas import anchors, schedule
from karat.core.golden import PHI, Golden
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import (
    Checked,
    Exact,
    Exhaustive,
    FloatLaw,
    Formula,
    Obligation,
    Property,
    implies,
)
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Band:
    """The declared band: anchor phi^-n / 2, from anchor/phi^k to anchor·phi^k."""

    n: int = 10
    k: int = 1

    @functools.cached_property
    def interval(self) -> Interval:
        """The exact band."""
        return Interval(*anchors.band(self.n, self.k))

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The float64 ends, rounded inward."""
        return self.interval.at_least, self.interval.at_most


def margin(values: Mapping[str, Any], band: Band, ops: Ops = FLOAT) -> Number:
    """min(upper - lr, lr - lower) on the plateau, min(upper - lr, lr) elsewhere; unit of lr, negative outside."""
    lower, upper = band.ends
    lr = values["lr"]
    least = ops.where(values["on_plateau"] > 0, ops.constant(lower, lr), ops.constant(0.0, lr))
    return ops.minimum(upper - lr, lr - least)


def seed_schedule(
    step: Number, warmup: Number, stable_end: Number, total: Number, peak: Number, floor: Number, ops: Ops = FLOAT
) -> Number:
    """The seed's schedule as it ran: cosine decay whose progress is not clamped, so that it is periodic past `total`."""
    if step < warmup:
        return peak * step / warmup
    if step < stable_end:
        return peak
    part = (step - stable_end) / (total - stable_end)
    return floor + (peak - floor) * (1 + ops.cospi(part)) / 2


SEED_LOG = {50: "0.002000", 100: "0.004000", 250: "0.010000", 500: "0.020000", 1000: "0.002000", 1500: "0.011000",
            1950: "0.017364", 2000: "0.020000"}  # fmt: skip
"""Step -> learning rate, as logged by the seed's run of 2000 steps with a declared total of 1000."""

DEFAULT = Band()
STEPS = {"step": "int", "warmup": "int", "stable_end": "int", "total": "int"}
RATES = {"peak": "real", "floor": "real"}


def _ordered(v: Any) -> dict[str, Any]:
    return {
        "the step is counted from 0": v.step >= 0,
        "0 <= warmup": v.warmup >= 0,
        "warmup <= stable_end": v.warmup <= v.stable_end,
        "stable_end <= total": v.stable_end <= v.total,
        "0 <= floor": v.floor >= 0,
        "floor <= peak": v.floor <= v.peak,
    }


def _in_band(v: Any) -> dict[str, Any]:
    return _ordered(v) | {
        "anchor > 0": v.anchor > 0,
        "anchor/phi <= peak": v.anchor / PHI <= v.peak,
        "peak <= anchor·phi": v.peak <= v.anchor * PHI,
    }


def _later(v: Any) -> dict[str, Any]:
    return {
        "warmup <= stable_end": v.warmup <= v.stable_end,
        "floor <= peak": v.floor <= v.peak,
        "stable_end <= step": v.stable_end <= v.step,
        "step <= later": v.step <= v.later,
    }


def _plateau(v: Any, wsd: Any) -> Any:
    lr = wsd(v.step, v.warmup, v.stable_end, v.total, v.peak, v.floor)
    on = (v.warmup <= v.step) & (v.step < v.stable_end)
    return [implies(on, v.anchor / PHI <= lr), implies(on, lr <= v.anchor * PHI)]


def _never_above(v: Any, wsd: Any) -> Any:
    lr = wsd(v.step, v.warmup, v.stable_end, v.total, v.peak, v.floor)
    return [lr <= v.anchor * PHI, lr >= 0, implies(v.step >= v.warmup, lr >= v.floor)]


def _never_rises(v: Any, wsd: Any) -> Any:
    arguments = (v.warmup, v.stable_end, v.total, v.peak, v.floor)
    return wsd(v.later, *arguments) <= wsd(v.step, *arguments)


def _ends(v: Any, wsd: Any) -> Any:
    lr = wsd(v.step, v.warmup, v.stable_end, v.total, v.peak, v.floor)
    return [
        implies(v.step == v.warmup - 1, lr == v.peak),
        implies((v.step == v.stable_end) & (v.step < v.total), lr == v.peak),
        implies(v.step >= v.total, lr == v.floor),
    ]


def _shape(v: Any, wsd: Any) -> Any:
    lr = wsd(v.step, v.warmup, v.stable_end, v.total, v.peak, v.floor)
    falling = (v.stable_end <= v.step) & (v.step < v.total)
    return [
        implies(v.step < v.warmup, lr * v.warmup == v.peak * (v.step + 1)),
        implies(falling, (lr - v.floor) * (v.total - v.stable_end) == (v.peak - v.floor) * (v.total - v.step)),
    ]


def _cosine_band(v: Any, cosine: Any) -> Any:
    lr = cosine(v.step, v.stable_end, v.total, v.peak, v.floor, v.ops)
    return [
        lr <= v.peak,
        lr >= 0,
        implies(v.step >= v.stable_end, lr >= v.floor),
        implies(v.step >= v.total, lr == v.floor),
        implies((v.step == v.stable_end) & (v.step < v.total), lr == v.peak),
    ]


def _cosine_shape(v: Any, cosine: Any) -> Any:
    lr = cosine(v.step, v.stable_end, v.total, v.peak, v.floor, v.ops)
    if v.step < v.stable_end:
        return lr * v.stable_end == v.peak * (v.step + 1)
    if v.step >= v.total:
        return []
    part = (v.step - v.stable_end) / (v.total - v.stable_end)
    off = 2 * (lr - v.floor) - (v.peak - v.floor) * (1 + v.ops.cospi(part))
    slack = v.peak * Fraction(1, 10**12)  # zero over the reals; cos on numbers is a double
    return [off <= slack, -slack <= off]


def _cosine_never_rises(v: Any, cosine: Any) -> Any:
    arguments = (v.stable_end, v.total, v.peak, v.floor, v.ops)
    return cosine(v.later, *arguments) <= cosine(v.step, *arguments)


def _seed_never_rises(v: Any, seed: Any) -> Any:
    arguments = (v.warmup, v.stable_end, v.total, v.peak, v.floor, v.ops)
    return seed(v.later, *arguments) <= seed(v.step, *arguments)


def _seed_run(v: Any) -> dict[str, Any]:
    return {
        "the seed's configuration": (v.warmup == 500) & (v.stable_end == 800) & (v.total == 1000)
        & (v.peak == Fraction(1, 50)) & (v.floor == Fraction(1, 500)),
        "the declared end": v.step == 1000,
        "the end of its log": v.later == 2000,
    }  # fmt: skip


def _sample(random: Random) -> dict[str, Any]:
    warmup = random.randint(0, 40)
    stable_end = warmup + random.randint(0, 60)
    total = stable_end + random.randint(0, 60)
    step = random.randint(0, total + 30)
    anchor = Fraction(random.randint(1, 400), 10_000)
    peak = anchor * Fraction(random.randint(619, 1618), 1000)  # inside [1/phi, phi]
    later = max(step, stable_end) + random.randint(0, 50)
    return {"step": step, "warmup": warmup, "stable_end": stable_end, "total": total, "later": later,
            "anchor": anchor, "peak": peak, "floor": peak * Fraction(random.randint(0, 100), 100)}  # fmt: skip


def _sample_later(random: Random) -> dict[str, Any]:
    values = _sample(random)
    return values | {"step": max(values["step"], values["stable_end"])}


def _sample_seed_run(random: Random) -> dict[str, Any]:
    return {"step": 1000, "later": 2000, "warmup": 500, "stable_end": 800, "total": 1000,
            "peak": Fraction(1, 50), "floor": Fraction(1, 500)}  # fmt: skip


def _nearest(v: Any, nearer: Any) -> Any:
    low_is_nearer = nearer(v.rate, v.low, v.high)
    near_low = (v.low <= v.rate) & (v.rate * v.rate <= v.low * v.low * PHI)
    near_high = (v.rate <= v.high) & (v.high * v.high <= v.rate * v.rate * PHI)
    return [implies(low_is_nearer, near_low), implies(low_is_nearer == False, near_high)]  # noqa: E712


def _is_at_most_as_far(v: Any, nearer: Any) -> Any:
    return nearer(v.rate, v.low, v.high) == (v.rate / v.low <= v.high / v.rate)


def _neighbours(v: Any) -> dict[str, Any]:
    return {
        "low > 0": v.low > 0,
        "neighbours": v.high == v.low * PHI,
        "between": (v.low <= v.rate) & (v.rate <= v.high),
    }


def _sample_neighbours(random: Random) -> dict[str, Any]:
    low = Golden(Fraction(random.randint(1, 999), 1000))
    return {"low": low, "high": low * PHI, "rate": low * Fraction(random.randint(1000, 1618), 1000)}


def _anchors_cover_doubles(anchor: Any) -> Checked:
    smallest, largest = Fraction(5e-324), Fraction(1.7976931348623157e308)
    first, last = -1480, 1548
    if not anchor(first) > largest or not anchor(last) < smallest:
        return Checked(0, f"anchors {first}..{last} do not enclose the positive doubles")
    if anchor(0) != Fraction(1, 2):
        return Checked(0, f"anchor(0) = {anchor(0)}, not 1/2")
    for n in range(first, last):
        if anchor(n) != anchor(n + 1) * PHI:
            return Checked(n - first, f"anchors {n} and {n + 1} are not neighbours by the factor phi")
    return Checked(last - first)


def _band_is_declared(band: Any) -> Checked:
    """low · phi^k = anchor = high / phi^k, exactly."""
    cases = 0
    for n in range(-8, 65):
        for k in range(5):
            low, high = band(n, k)
            if low * PHI**k != PHI**-n / 2 or high != PHI**-n / 2 * PHI**k:
                return Checked(cases, f"band({n}, {k}) = ({low}, {high})")
            cases += 1
    return Checked(cases)


def _ends_are_inward_and_tight(declared: Any) -> Checked:
    cases = 0
    for n in range(65):
        for k in range(1, 4):
            ends = declared(n, k).ends
            low, high = PHI**-n / 2 * PHI**-k, PHI**-n / 2 * PHI**k
            inside = low <= Fraction(ends[0]) and Fraction(ends[1]) <= high
            tight = Fraction(math.nextafter(ends[0], -1)) < low and high < Fraction(math.nextafter(ends[1], 1e308))
            if not (inside and tight):
                return Checked(cases, f"Band({n}, {k}).ends = {ends}")
            cases += 1
    return Checked(cases)


def _refuses_negative_k(band: Any) -> Checked:
    for k in range(-4, 0):
        try:
            band(10, k)
        except ValueError:
            continue
        return Checked(k + 4, f"band(10, {k}) is given")
    return Checked(4)


def _refuses_rates(nearest: Any) -> Checked:
    past = anchors.anchor(81).enclosure(400)[1], anchors.anchor(-81).enclosure(400)[0]
    odd = (0.0, -0.0, -1.0, -5e-324, math.nan, math.inf, -math.inf, *past)
    for place, rate in enumerate(odd):
        try:
            nearest(rate)
        except ValueError as error:
            if ("positive" in str(error)) == (rate not in past):
                continue
        return Checked(place, f"nearest_anchor({rate}) is given")
    for n in (80, -80):
        if nearest(anchors.anchor(n).enclosure(400)[0]) != n:
            return Checked(len(odd), f"anchor {n} is not found")
    return Checked(len(odd) + 2)


def _nearest_is_settled(nearest: Any) -> Checked:
    """Both sides of every anchor and of every point halfway between two on the logarithmic scale, and the anchors."""
    cases = 0
    for n in (*range(-12, 13), -40, 40):
        here, above = anchors.anchor(n), anchors.anchor(n - 1)
        halfway = math.sqrt(float(here) * float(above))
        for rate in (
            float(here) * (1 - 2**-40),
            float(here) * (1 + 2**-40),
            halfway * (1 - 2**-40),
            halfway * (1 + 2**-40),
        ):
            expected = n if rate < halfway else n - 1
            if nearest(rate) != expected:
                return Checked(cases, f"nearest_anchor({rate!r}) = {nearest(rate)}, not {expected}")
            cases += 1
    if nearest(Fraction(1, 2)) != 0:
        return Checked(cases, f"nearest_anchor(1/2), anchor 0 itself, = {nearest(Fraction(1, 2))}")
    return Checked(cases + 1)


def _accepts_is(v: Any, accepts: Any) -> Any:
    return accepts(v.margin) == ((v.margin >= 0.0) & (v.margin < math.inf))


def _float_cosine(v: Any, cosine: Any) -> Any:
    lr = cosine(v.step, v.warmup, v.total, v.peak, v.floor, v.ops)
    return [lr <= v.peak, lr >= 0.0, implies(v.step >= v.warmup, lr >= v.floor)]


def _ignores_k(n: int, k: int) -> tuple[Golden, Golden]:
    return anchors.band(n, 1)


def _rounded_to_nearest(n: int, k: int) -> SimpleNamespace:
    low, high = anchors.band(n, k)
    return SimpleNamespace(ends=(float(low), float(high)))


def _sparse_anchor(n: int) -> Golden:
    return PHI ** (-2 * n) / 2


def _rate_is_near(rate: float, nearest: Any) -> bool:
    """Within a factor sqrt(phi) of the anchor that is named: no other anchor is nearer."""
    exact, found = Fraction(rate), anchors.anchor(nearest(rate))
    return found * found <= exact * exact * PHI and exact * exact <= found * found * PHI


def _nearest_by_rounding_up(rate: float) -> int:
    return math.floor(-math.log(2 * rate) / math.log(1.618033988749895)) - 1


def _float_schedule(wsd: Any) -> Checked:
    cases = 0
    peak, floor = 0.004, 0.0001
    for total in range(1, 61):
        for warmup, stable_end in itertools.combinations_with_replacement(range(0, total + 1, max(1, total // 6)), 2):
            previous = math.inf
            for step in range(total + 3):
                lr = wsd(step, warmup, stable_end, total, peak, floor)
                where = f"step {step} of warmup {warmup}, stable_end {stable_end}, total {total}: lr = {lr!r}"
                low = floor if step >= warmup else 0.0
                if not low <= lr <= peak:
                    return Checked(cases, f"{where} is outside [{low}, {peak}]")
                if step >= stable_end and lr > previous:
                    return Checked(cases, f"{where} rises from {previous!r}")
                if step >= total and lr != floor:
                    return Checked(cases, f"{where} is not the floor")
                previous = lr if step >= stable_end else math.inf
                cases += 1
    return Checked(cases)


def _replay_log(seed: Any) -> Checked:
    for step, logged in SEED_LOG.items():
        ours = f"{seed(step, 500, 800, 1000, 0.02, 0.002):.6f}"
        if ours != logged:
            return Checked(0, f"step {step}: computed {ours}, logged {logged}")
    return Checked(len(SEED_LOG))


def _clamped_seed(step: Any, warmup: Any, stable_end: Any, total: Any, peak: Any, floor: Any, ops: Ops = FLOAT) -> Any:
    return seed_schedule(min(step, total), warmup, stable_end, total, peak, floor, ops)


def _unclamped_wsd(step: Any, warmup: Any, stable_end: Any, total: Any, peak: Any, floor: Any) -> Any:
    if step < warmup or step < stable_end or total == stable_end:
        return schedule.wsd(step, warmup, stable_end, total, peak, floor)
    return peak - (peak - floor) * ((step - stable_end) / (total - stable_end))


def _clamp_in_band(v: Any, clamp: Any) -> Any:
    y = clamp(v.x, v.low, v.high)
    return [v.low <= y, y <= v.high, implies((v.low <= v.x) & (v.x <= v.high), y == v.x)]


def _ends_returned(clamp: Any) -> Checked:
    """At an end the end itself is returned: of two zeros the one that is the end."""
    cases = ((-0.0, 0.0, 1.0, 0.0), (-0.0, -1.0, 0.0, 0.0), (0.0, -0.0, 1.0, -0.0), (0.0, -1.0, -0.0, -0.0))
    for place, (x, low, high, end) in enumerate(cases):
        if repr(clamp(x, low, high)) != repr(end):
            return Checked(place, f"clamp({x}, {low}, {high}) = {clamp(x, low, high)!r}, not {end!r}")
    return Checked(len(cases))


def _float_returned(v: Any, wsd: Any) -> Any:
    lr = wsd(v.step, v.warmup, v.stable_end, v.total, v.peak, v.floor)
    return [lr <= v.peak, lr >= 0.0, implies(v.step >= v.warmup, lr >= v.floor)]


def _doubles(random: Random) -> dict[str, float]:
    low = random.uniform(-1, 1)
    return {"x": random.choice([random.uniform(-2, 2), math.inf, -math.inf, math.nan]), "low": low,
            "high": low + random.random()}  # fmt: skip


def _floor_below_peak(v: Any) -> dict[str, Any]:
    return {
        "the step is counted from 0": v.step >= 0,
        "0 <= floor": v.floor >= 0,
        "floor <= peak": v.floor <= v.peak,
    }


def _double_schedule(random: Random) -> dict[str, float]:
    """Doubles at the ends of a decay, where rounding does leave the band before the clamp (for 1 in 70 of them); and a
    ramp that is infinite over infinite, which only the clamp keeps from being NaN."""
    if random.random() < 0.1:
        return {"step": 1e300, "warmup": math.inf, "stable_end": 0.0, "total": 1.0, "peak": 1e300, "floor": 0.0}
    total, peak = 2.0 ** random.choice([3, 20, 40, 52]), random.uniform(1e-4, 1e-2)
    return {"step": random.choice([0.0, 0.0, total - 1]), "warmup": 0.0, "stable_end": 0.0, "total": total, "peak": peak,
            "floor": peak * random.random()}  # fmt: skip


def _guard_on_plateau(v: Any, distance: Any, accepts: Any) -> Any:
    declared = SimpleNamespace(ends=(v.lower, v.upper))
    accepted = accepts(distance({"lr": v.lr, "on_plateau": 1.0}, declared, v.ops))
    inside = (v.lower <= v.lr) & (v.lr <= v.upper)  # an equivalence in three parts: Z3 decides them faster
    return [implies(accepted, v.lower <= v.lr), implies(accepted, v.lr <= v.upper), implies(inside, accepted)]


def _guard_elsewhere(v: Any, distance: Any, accepts: Any) -> Any:
    declared = SimpleNamespace(ends=(v.lower, v.upper))
    accepted = accepts(distance({"lr": v.lr, "on_plateau": 0.0}, declared, v.ops))
    return accepted == ((v.lr >= 0.0) & (v.lr <= v.upper))


def _finite_ends(v: Any) -> dict[str, Any]:
    return {"finite ends": (v.lower > -math.inf) & (v.lower <= v.upper) & (v.upper < math.inf)}


def _any_rate(random: Random) -> dict[str, float]:
    lower, upper = DEFAULT.ends
    return {"lr": random.choice([random.uniform(0, 0.01), math.nan, math.inf, -1.0]), "lower": lower, "upper": upper}


_WSD = (schedule.wsd,)
_ANCHORED = STEPS | RATES | {"anchor": "real"}
_PAIRED = STEPS | RATES | {"later": "int"}

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-8.plateau", "the plateau of the running WSD schedule lies in [anchor/phi, anchor·phi], for all "
            "integer steps and totals and every anchor, if the peak does", _WSD,
            variables=_ANCHORED, given=_in_band, show=_plateau, sample=_sample),
    Formula("INV-8.never-above", "the learning rate never exceeds anchor·phi, is never negative, and is never below "
            "the floor once warm", _WSD, variables=_ANCHORED, given=_in_band, show=_never_above, sample=_sample),
    Formula("INV-8.never-rises", "the decay of WSD never rises, at any step up to any later one, past the end too",
            _WSD, variables=_PAIRED, given=_later, show=_never_rises, sample=_sample_later),
    Formula("INV-8.ends", "the end points are hit: peak at the last warm-up step and at stable_end, floor from total on",
            _WSD, variables=STEPS | RATES, given=_ordered, show=_ends, sample=_sample),
    Formula("INV-8.shape", "warm-up and decay are straight lines, at every step", _WSD,
            variables=STEPS | RATES, given=_ordered, show=_shape, sample=_sample),
    Formula("INV-8.cosine-band", "the cosine schedule stays in [floor, peak] once warm, hits both ends, and stays at "
            "the floor past the end", (schedule.cosine,), variables=STEPS | RATES, given=_ordered,
            show=_cosine_band, sample=_sample),
    Formula("INV-8.cosine-shape", "the cosine schedule warms up in a straight line, then is floor + (peak - floor)(1 + "
            "cos(pi t))/2, t the part of the decay that is done", (schedule.cosine,), variables=STEPS | RATES, given=_ordered,
            show=_cosine_shape, sample=_sample),
    Formula("INV-8.cosine-never-rises", "the decay of the cosine schedule never rises, past the end too",
            (schedule.cosine,), variables=_PAIRED, given=_later, show=_cosine_never_rises, sample=_sample_later),
    Formula("INV-8.nearest", "a rate between two neighbouring anchors is within a factor sqrt(phi) of the nearer one, so in "
            "its band for every k >= 1",
            (anchors.nearer,), variables={"rate": "real", "low": "real", "high": "real"}, given=_neighbours,
            show=_nearest, sample=_sample_neighbours),
    Formula("INV-8.nearer", "the lower of two points is the nearer to a rate iff the rate is at most as far above it, as a "
            "factor, as it is below the upper one", (anchors.nearer,), variables={"rate": "real", "low": "real", "high": "real"},
            given=lambda v: {"positive": (v.low > 0) & (v.rate > 0)}, show=_is_at_most_as_far, sample=_sample_neighbours),
    Exhaustive("INV-8.anchors-cover", "neighbouring anchors differ by the factor phi, and anchors -1480..1548 enclose "
               "every positive double: so each lies between two neighbours", (anchors.anchor,),
               check=_anchors_cover_doubles, rivals={"every second anchor": (_sparse_anchor,)}),
    Property("INV-8.nearest-anchor", "nearest_anchor(rate) names an anchor within a factor sqrt(phi) of the rate, so in its band",
             (anchors.nearest_anchor,), strategy=lambda st: st.floats(min_value=1e-9, max_value=1e3),
             holds=_rate_is_near, rivals={"off by one": (_nearest_by_rounding_up,)}, examples=100),
    Exhaustive("INV-8.nearest-settled", "nearest_anchor is right on both sides of anchors -12..12 and ±40 and of the points "
               "halfway between two", (anchors.nearest_anchor,), check=_nearest_is_settled,
               rivals={"off by one": (_nearest_by_rounding_up,)}),
    Exhaustive("INV-8.nearest-refuses", "nearest_anchor finds anchors 80 and -80, and refuses what lies beyond, or is not "
               "positive and finite", (anchors.nearest_anchor,),
               check=_refuses_rates, rivals={"takes anything": (lambda rate: 0,)}),
    Exhaustive("INV-8.band-refuses", "a band refuses a negative k", (anchors.band,), check=_refuses_negative_k,
               rivals={"takes any": (_ignores_k,)}),
    Exact("INV-8.champion", "0.004 lies in the default band, exactly", (anchors.band,),
          show=lambda rate: Interval(*anchors.band(10, 1)).contains(rate), at=Fraction(4, 1000),
          not_at=(Fraction(1, 2), Fraction(2, 1000), Fraction(7, 1000))),
    Exhaustive("INV-8.band", "the band is [anchor/phi^k, anchor·phi^k] exactly, for n = -8..64 and k = 0..4",
               (anchors.band,), check=_band_is_declared, rivals={"k ignored": (_ignores_k,)}),
    Exhaustive("INV-8.inward", "the float64 ends of the declared band lie inside the exact one, and the next doubles do "
               "not: n = 0..64, k = 1..3", (Band,), check=_ends_are_inward_and_tight,
               rivals={"rounded to nearest": (_rounded_to_nearest,)}),
    FloatLaw("INV-8.clamp", "clamp(x, low, high) is in [low, high] for every double x, NaN included, and is x inside",
             (schedule.clamp,), variables=("x", "low", "high"), given=lambda v: {"low <= high": v.low <= v.high},
             show=_clamp_in_band, sample=_doubles),
    Exhaustive("INV-8.clamp-ends", "at an end clamp returns the end itself: the sign of zero is the end's", (schedule.clamp,),
               check=_ends_returned, rivals={"by maximum and minimum": (lambda x, low, high: max(low, min(x, high)),)}),
    FloatLaw("INV-8.returned", "the double that WSD returns is in [0, peak], and in [floor, peak] once warm, whatever "
             "its products and quotients round to", _WSD,
             variables=("step", "warmup", "stable_end", "total", "peak", "floor"),
             given=_floor_below_peak, show=_float_returned, sample=_double_schedule),
    FloatLaw("INV-8.cosine-returned", "so is the double that the cosine schedule returns, whatever its cosine rounds to",
             (schedule.cosine,), variables=("step", "warmup", "total", "peak", "floor"), given=_floor_below_peak,
             show=_float_cosine, sample=_double_schedule),
    FloatLaw("INV-8.accepts", "a margin is accepted iff it is a finite number that is not negative: for all doubles",
             (verdict.accepts,), variables=("margin",), show=_accepts_is,
             sample=lambda random: {"margin": random.choice([random.uniform(-1, 1), 0.0, -0.0, math.inf, math.nan])}),
    FloatLaw("INV-8.guard-plateau", "on the plateau the guard accepts a double iff it is in the band: for all doubles, "
             "NaN and infinities too, and all finite ends", (margin, verdict.accepts),
             variables=("lr", "lower", "upper"), given=_finite_ends, show=_guard_on_plateau, sample=_any_rate),
    FloatLaw("INV-8.guard-elsewhere", "off the plateau the guard accepts a double iff it is in [0, upper end]",
             (margin, verdict.accepts), variables=("lr", "lower", "upper"), given=_finite_ends, show=_guard_elsewhere,
             sample=_any_rate),
    Exhaustive("INV-8.float-schedule", "in float64 WSD stays in [floor, peak], never rises in its decay and ends at the "
               "floor: every step of every total up to 60", _WSD, check=_float_schedule,
               rivals={"no clamp": (_unclamped_wsd,)}),
    Formula("INV-8.seed-never-rises", "the seed's schedule, whose progress is not clamped, never rises after its "
            "declared end", (seed_schedule,), variables=_PAIRED, given=_seed_run, show=_seed_never_rises,
            sample=_sample_seed_run, must_fail=True),
    Exhaustive("INV-8.seed-log", "that schedule, with a declared total of 1000, gives the seed's logged rates to six "
               "digits, back at the peak 0.02 at step 2000", (seed_schedule,), check=_replay_log,
               rivals={"clamped": (_clamped_seed,)}),
    Exact("INV-8.seed-identity", "alpha_phi/phi^3 = 0.004, as the seed has it", (anchors.anchor,),
          show=lambda rate: rate == anchors.ALPHA_PHI / PHI**3, at=Fraction(4, 1000),
          not_at=(anchors.ALPHA_PHI / PHI**3,), must_fail=True),
)  # fmt: skip


def bounds(band: Band) -> tuple[Bound, ...]:
    """The band as cited."""
    low, high = anchors.band(band.n, band.k)
    middle = anchors.anchor(band.n)
    return (
        Bound("anchor", f"phi^-{band.n} / 2 = {middle}", middle.decimal()),
        Bound("lower", f"anchor / phi^{band.k} = {low}", low.decimal()),
        Bound("upper", f"anchor · phi^{band.k} = {high}", high.decimal()),
    )


def required(band: Band) -> str:
    """The condition as one line."""
    power = f"^{band.k}" if band.k != 1 else ""
    return f"anchor/phi{power} <= lr <= anchor·phi{power} (below the lower end only off the plateau)   {band.interval.decimal()}"


INVARIANT = Invariant(
    id="INV-8",
    slug="lr-band",
    statement="On the plateau the learning rate is in [anchor/phi^k, anchor·phi^k], anchor = phi^-n/2; at every step it "
    "is in [0, anchor·phi^k].",
    why="A rate outside its declared band, or one that climbs again after the decay, trains on without a word.",
    unit="",
    sources=("the seed's INV-8, corrected", "WSD: Hu et al. 2024, arXiv 2404.06395"),
    limits=(
        "The band is a declaration: nothing proves that a rate inside it trains well.",
        "Below the band, warm-up and decay are only required to be >= 0.",
        "One rate per parameter group is looked at; what the optimizer makes of it is not.",
    ),
    phases=(Phase.START, Phase.BEFORE_STEP),
    quantities=(
        Quantity("lr", "lr", "", "the learning rate that the optimizer is about to use, the worst over its groups"),
        Quantity("on_plateau", "on plateau", "", "1 on the plateau of the declared schedule, else 0"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {"lr": st.one_of(st.floats(0, 0.02), st.floats()), "on_plateau": st.sampled_from([0.0, 1.0])}
    ),
    holds=(
        Witness({"lr": 0.004, "on_plateau": 1.0}, "the seed's rate"),
        Witness({"lr": DEFAULT.ends[0], "on_plateau": 1.0}, "the lower end"),
        Witness({"lr": DEFAULT.ends[1], "on_plateau": 1.0}, "the upper end"),
        Witness({"lr": 0.0, "on_plateau": 0.0}, "the end of a decay to zero"),
    ),
    violates=(
        Witness({"lr": math.nextafter(DEFAULT.ends[1], 1), "on_plateau": 1.0}, "one double above the upper end"),
        Witness({"lr": math.nextafter(DEFAULT.ends[0], 0), "on_plateau": 1.0}, "one double below the lower end"),
        Witness({"lr": 0.5, "on_plateau": 0.0}, "a rate typed wrong"),
        Witness({"lr": -1e-9, "on_plateau": 0.0}, "a negative rate"),
        Witness({"lr": float(anchors.ALPHA_PHI / PHI**3), "on_plateau": 1.0}, "the seed's alpha_phi/phi^3"),
    ),
)
