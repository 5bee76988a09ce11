"""INV-12 ternary-exact: a ternary layer multiplies the numbers that it says it does, and its integers are exact.

Claim: every weight is -1, 0 or 1 times the scale of its group of 128, the nearest of the three; every activation is an
integer -127..127 times its row's step; a group's product is a sum of at most 128 integers of at most 127, at most 16256
in magnitude, so exact in int16, int32 and float32 in any order of addition; and the layer's output is that product
times the scales.
Why it matters: the gradient goes straight through the roundings, so a layer that rounds wrongly, takes another group's
scale or multiplies stale weights still lowers the loss, and the exported model is another one than was trained.
Source: BitNet b1.58, Ma et al. 2024, arXiv 2402.17764; core/formulas/ternary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

from karat.core import verdict
from karat.core.formulas import ternary
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Checked, Exhaustive, FloatLaw, Formula, Obligation, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops

LARGEST_SUM = 16256
"""128 · 127: what no group's sum exceeds."""


@dataclass(frozen=True)
class Exactness:
    """What float32 may add to exact integers, and how much of a layer must be there at all.

    tolerance: of an output, relative to the sum of its products' magnitudes. A group's sum is exact, so an output of g
    groups is rounded g + 2 times (scales, sums, step) and its scales are off by some 2^-23: 1.3e-6 at g = 16. excess: how
    much further than the nearest a number may be rounded to, in steps; the quotient of a code is off by 127 · 2^-23.
    least: the least scale, as float32 has it. live: the share of a layer's weights that are not zero; a group that is not
    all zero has one in 128.
    """

    tolerance: float = 1e-5
    excess: float = 1e-4
    least: float = float(np.float32(ternary.LEAST))
    live: float = 1e-3


def margin(values: Mapping[str, Any], allowed: Exactness, ops: Ops = FLOAT) -> Number:
    """The least of the distances to the four limits while trits and codes are in their ranges, else minus how far outside."""
    off = ops.maximum(values["trit"] - 1, values["code"] - ternary.LEVELS)
    rounding = ops.minimum(allowed.tolerance - values["deviation"], allowed.excess - values["excess"])
    there = ops.minimum(values["scale"] - allowed.least, values["live"] - allowed.live)
    return ops.where(off <= 0, ops.minimum(rounding, there), -off)


DEFAULT = Exactness()

# -- a trit --


def _pointwise(v: Any, trit: Any) -> Any:
    """What doubles make of 2w > s; that a double is doubled exactly, or is infinite with its sign, is `halves`."""
    t = trit(v.w, v.s, v.ops)
    return [
        (t == 1.0) == (v.w + v.w > v.s),
        (t == -1.0) == (v.w + v.w < -v.s),
        (t == 1.0) | (t == -1.0) | (t == 0.0),
        implies(v.w != v.w, t == 0.0),
    ]


def _scale_is_positive(v: Any) -> dict[str, Any]:
    return {"scale > 0": v.s > 0}


def _sample_doubles(random: Random) -> dict[str, float]:
    s = random.choice([1.0, 0.02, 5e-324, 1.7e308, math.inf])
    near = random.choice([s / 2, math.nextafter(s / 2, math.inf), -s / 2, math.nextafter(-s / 2, -math.inf)])
    return {"s": s, "w": random.choice([near, random.uniform(-2, 2), math.nan, math.inf, -math.inf, 0.0])}


def _nearest(v: Any, trit: Any) -> Any:
    """No other of the three is nearer; halfway it is 0; a weight as large as the scale is never 0."""
    t = trit(v.w, v.s, v.ops)
    taken = v.ops.absolute(v.w - v.ops.where(t == 1, v.s, v.ops.where(t == -1, -v.s, v.s - v.s)))
    return [
        taken <= v.ops.absolute(v.w),
        taken <= v.ops.absolute(v.w - v.s),
        taken <= v.ops.absolute(v.w + v.s),
        (t == 0) == ((2 * v.w <= v.s) & (2 * v.w >= -v.s)),
        (t == 1) | (t == 0) | (t == -1),
        implies((v.w >= v.s) | (v.w <= -v.s), t != 0),
    ]


def _sample_weight(random: Random) -> dict[str, Any]:
    s = Fraction(random.randint(1, 40), 10)
    return {"s": s, "w": random.choice([s / 2, -s / 2, s, Fraction(random.randint(-60, 60), 10)])}


def _halves(trit: Any) -> Checked:
    """Multiples of the least double, and of the doubles just below the largest, against exact fractions."""
    least, huge = 5e-324, math.ldexp(1.0, 1023)
    weights = [k * least for k in range(-50, 51)] + [k / 16 * huge for k in range(-31, 32)]
    scales = [k * least for k in range(1, 101)] + [k / 16 * huge for k in range(1, 32)]
    weights += [w for s in scales for w in (math.nextafter(s / 2, 0), s / 2, math.nextafter(s / 2, math.inf))]
    for s in scales:
        half = Fraction(s) / 2
        for w in weights:
            exact = Fraction(w)
            if trit(w, s) != (exact > half) - (exact < -half):
                return Checked(0, f"weight {w!r}, scale {s!r}: trit {trit(w, s)!r}")
    return Checked(len(weights) * len(scales))


def _scale_halved(weight: float, scale: float) -> float:
    return float((weight > scale / 2) - (weight < -scale / 2))


# -- a group's sum --


def _sums(v: Any, group_sum: Any) -> Any:
    q, t = [v.q1, v.q2, v.q3], [v.t1, v.t2, v.t3]
    return [
        group_sum(q, t, v.ops) == v.q1 * v.t1 + v.q2 * v.t2 + v.q3 * v.t3,
        group_sum(q[:1], t[:1], v.ops) == v.q1 * v.t1,
    ]


_TERMS = ("q1", "q2", "q3", "t1", "t2", "t3")


def _sample_terms(random: Random) -> dict[str, Any]:
    return {name: random.randint(-127, 127) for name in _TERMS}


def _in_range(v: Any) -> dict[str, Any]:
    return {
        "a code": (v.q >= -ternary.LEVELS) & (v.q <= ternary.LEVELS),
        "a trit": (v.t == -1) | (v.t == 0) | (v.t == 1),
        "the sum so far": (v.total <= ternary.largest_sum(v.terms)) & (v.total >= -ternary.largest_sum(v.terms)),
    }


def _one_more(v: Any, group_sum: Any, largest_sum: Any) -> Any:
    """The step of an induction over the terms, in any order; its start is that no terms have the sum 0."""
    total, bound = v.total + group_sum([v.q], [v.t], v.ops), largest_sum(v.terms + 1)
    return [total <= bound, total >= -bound, largest_sum(v.terms) == v.terms * 127]


def _sample_one_more(random: Random) -> dict[str, Any]:
    terms = random.randint(0, 200)
    total = random.choice([-1, 1, 0]) * 127 * terms
    return {"q": random.choice([-127, 127, 5]), "t": random.randint(-1, 1), "terms": terms, "total": total}


def _extremes(group_sum: Any, largest_sum: Any) -> Checked:
    """The bound is reached, from both sides, by every number of terms up to a group's; beyond, the sum grows on."""
    cases = 0
    for terms in range(ternary.GROUP + 1):
        for q, t in ((127, 1), (-127, 1), (127, -1), (-127, -1)):
            total, bound = group_sum([q] * terms, [t] * terms), largest_sum(terms)
            if abs(total) != bound or total != q * t * terms:
                return Checked(cases, f"{terms} terms {q} · {t} sum to {total}, the bound is {bound}")
            cases += 1
    if largest_sum(ternary.GROUP) != LARGEST_SUM:
        return Checked(cases, f"a group's bound is {largest_sum(ternary.GROUP)}, not {LARGEST_SUM}")
    return Checked(cases + 1)


def _representable(largest_sum: Any) -> Checked:
    """Every sum of a group, and so every partial sum: the same number as int16, int32 and float32."""
    bound = largest_sum(ternary.GROUP)
    for high in range(bound, -1, -(2**15)):  # from the largest down
        exact = np.arange(max(high - 2**15, -1) + 1, high + 1, dtype=np.int64)
        for integers in (exact, -exact):
            for kind in (np.float32, np.int32, np.int16):
                same = integers.astype(kind).astype(np.int64) == integers
                if not same.all():
                    return Checked(0, f"{int(integers[int(same.argmin())])} is not a {kind.__name__}")
    return Checked(3 * (2 * bound + 1), None if bound > 0 else "no sums")


# -- the guard --


def _full_margin(v: Any, distance: Any) -> Any:
    """The value in full: minus the distance of the integers from their ranges, else the least of four distances."""
    limits = SimpleNamespace(tolerance=v.tolerance, excess=v.most, least=v.least, live=v.floor)
    value = distance(
        {
            "trit": v.trit,
            "code": v.code,
            "scale": v.scale,
            "live": v.live,
            "excess": v.excess,
            "deviation": v.deviation,
        },
        limits,
        v.ops,
    )
    over_t, over_q = v.trit - 1, v.code - 127
    a, b, c, d = v.tolerance - v.deviation, v.most - v.excess, v.scale - v.least, v.live - v.floor
    inside = (over_t <= 0) & (over_q <= 0)
    return [
        implies((over_t > 0) & (over_t >= over_q), value == -over_t),
        implies((over_q > 0) & (over_q >= over_t), value == -over_q),
        implies(inside, (value <= a) & (value <= b) & (value <= c) & (value <= d)),
        implies(inside, (value == a) | (value == b) | (value == c) | (value == d)),
    ]


_OBSERVED = ("trit", "code", "scale", "live", "excess", "deviation")
_LIMITS = ("tolerance", "most", "least", "floor")


def _sample_margin(random: Random) -> dict[str, Any]:
    values = {name: Fraction(random.randint(0, 20), 10) for name in (*_OBSERVED, *_LIMITS)}
    return values | {"trit": random.choice([0, 1, 1, 1, 2, 4]), "code": random.choice([120, 127, 127, 128, 130])}


def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    accepted = accepts(distance({name: getattr(v, name) for name in _OBSERVED}, DEFAULT, v.ops))
    whole = (v.trit <= 1.0) & (v.code <= 127.0)
    rounded = (v.deviation <= DEFAULT.tolerance) & (v.excess <= DEFAULT.excess)
    return accepted == (whole & rounded & (v.scale >= DEFAULT.least) & (v.live >= DEFAULT.live))


def _finite(v: Any) -> dict[str, Any]:
    return {"no infinity on the good side": v.live != math.inf}


_SOUND = {"trit": 1.0, "code": 127.0, "scale": 0.02, "live": 0.7, "excess": 0.0, "deviation": 3e-7}
_ODD: tuple[tuple[str, float], ...] = (
    ("trit", 2.0), ("trit", 0.0), ("code", 128.0), ("code", math.nan), ("scale", 0.0), ("scale", math.nan), ("live", 0.0),
    ("live", DEFAULT.live), ("scale", DEFAULT.least), ("excess", 0.5), ("excess", -math.inf), ("deviation", 1e-3),
    ("deviation", DEFAULT.tolerance), ("deviation", math.nan),
)  # fmt: skip


def _readings(random: Random) -> dict[str, float]:
    return _SOUND | dict([random.choice(_ODD)])


OBLIGATIONS: tuple[Obligation, ...] = (
    FloatLaw("INV-12.trit", "the trit of doubles in full: 1 iff twice the weight is above the scale, -1 iff it is below minus "
             "the scale, else 0; infinities and NaN included", (ternary.trit,), variables=("w", "s"), given=_scale_is_positive,
             show=_pointwise, sample=_sample_doubles),
    Exhaustive("INV-12.halves", "where halving a scale would round and doubling a weight overflows, the trit is the exact "
               "nearest one: small multiples of the least double, sixteenths of 2^1023, and the neighbours of every half",
               (ternary.trit,), check=_halves, rivals={"the scale halved": (_scale_halved,)}),
    Formula("INV-12.nearest", "the trit's multiple of the scale is the nearest of -s, 0, s; 0 halfway, and not 0 for a weight as "
            "large as the scale: a group that is not all zero keeps a weight", (ternary.trit,),
            variables={"w": "real", "s": "real"}, given=_scale_is_positive, show=_nearest, sample=_sample_weight),
    Formula("INV-12.sum", "a group's product is the sum of the products of codes and trits, each taken once",
            (ternary.group_sum,), variables=dict.fromkeys(_TERMS, "int"), show=_sums, sample=_sample_terms),
    Formula("INV-12.step", "a sum of n products of a code and a trit is at most 127 n in magnitude: one term more, for every n "
            "and every order", (ternary.group_sum, ternary.largest_sum),
            variables=dict.fromkeys(("q", "t", "terms", "total"), "int"), given=_in_range, show=_one_more,
            sample=_sample_one_more),
    Exhaustive("INV-12.extremes", "0 to 128 terms reach the bound and no more, from both sides; a group's is 16256",
               (ternary.group_sum, ternary.largest_sum), check=_extremes,
               rivals={"codes to -128": (ternary.group_sum, lambda terms: 128 * terms),
                       "a term lost": (lambda q, t: 127 * max(len(q) - 1, 0), ternary.largest_sum)}),
    Exhaustive("INV-12.exact", "every integer up to a group's bound is itself in int16, int32 and float32, so every partial sum "
               "is exact", (ternary.largest_sum,), check=_representable,
               rivals={"256 terms more": (lambda terms: 256 * terms,), "beyond float32": (lambda terms: 2**24 + 1,)}),
    Formula("INV-12.margin", "the guard's margin in full: minus the distance of trits or codes from their ranges, else the "
            "least of the distances of deviation, excess, scale and live from their limits", (margin,),
            variables=dict.fromkeys((*_OBSERVED, *_LIMITS), "real"), show=_full_margin, sample=_sample_margin),
    FloatLaw("INV-12.guard", "the guard accepts doubles iff trits and codes are in their ranges and all four limits are kept, "
             "NaN included", (margin, verdict.accepts), variables=_OBSERVED, given=_finite, show=_guard, sample=_readings),
)  # fmt: skip


def bounds(allowed: Exactness) -> tuple[Bound, ...]:
    """The ranges and limits as cited."""
    return (
        Bound("group's sum", "128 · 127 < 2^15 < 2^24", str(LARGEST_SUM)),
        Bound("tolerance", "declared; up to 16 groups 9e-8 was measured", f"{allowed.tolerance:g} of the magnitudes"),
        Bound("excess", "declared; two roundings of a code are 127 · 2^-23", f"{allowed.excess:g} of a step"),
        Bound("least scale", "1e-8 as float32", f"{allowed.least:.10g}"),
        Bound("live", "declared", f"{allowed.live:g} of a layer's weights"),
    )


def required(allowed: Exactness) -> str:
    """The condition as one line."""
    return (
        f"|t| <= 1, |q| <= {ternary.LEVELS}, scale >= {allowed.least:.3g}, live >= {allowed.live:g}, "
        f"excess <= {allowed.excess:g}, deviation <= {allowed.tolerance:g}   a group's |sum| <= {LARGEST_SUM} < 2^24"
    )


def _values(**changed: float) -> dict[str, Any]:
    return _SOUND | changed


INVARIANT = Invariant(
    id="INV-12",
    slug="ternary-exact",
    statement="In a ternary layer every weight is the nearest of -s, 0, s of its group, every activation an integer -127..127 "
    "times its row's step, and the output their product, exact in integers within a group.",
    why="The gradient passes the roundings, so a layer that rounds or scales wrongly still trains; its export does not match.",
    unit="",
    sources=("BitNet b1.58: Ma et al. 2024, arXiv 2402.17764", "the seed's ternary trainer, with a scale per group"),
    limits=(
        "Weights are all looked at; activations and outputs at the first 8 rows of a batch, all outputs of them.",
        "The integer product itself is the device's: that it is exact for these sums is proved, that it is a product is watched.",
        "Rounding between groups is float32: bounded by the tolerance, which is declared.",
        "That a weight is not zero does not say that it is of use; nor does anything prove that ternary weights suffice.",
    ),
    phases=(Phase.BEFORE_STEP, Phase.FINISH),
    quantities=(
        Quantity("trit", "|t|", "", "the largest magnitude of a ternary weight, before its scale"),
        Quantity("code", "|q|", "", "the largest magnitude of an activation's integer"),
        Quantity("scale", "scale", "", "the least scale of a group"),
        Quantity("live", "live", "", "the share of weights that are not zero, in the layer where it is least"),
        Quantity("excess", "excess", "", "how much further from its number a weight is than the nearest of -s, 0, s, in "
                 "scales, and a code than half a step, in steps: the worst"),
        Quantity("deviation", "deviation", "", "how far a sampled output is from the product of its integers and scales, "
                 "relative to the sum of that product's magnitudes: the worst of layers and outputs"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {
            "trit": st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.0]),
            "code": st.sampled_from([127.0, 127.0, 126.0, 128.0]),
            "scale": st.one_of(st.floats(1e-3, 1), st.floats(0, 2e-8)),
            "live": st.one_of(st.floats(0.1, 1), st.floats(0, 2e-3)),
            "excess": st.one_of(st.floats(0, 2e-4), st.floats()),
            "deviation": st.one_of(st.floats(0, 2e-5), st.floats()),
        }
    ),
    holds=(
        Witness(_values(deviation=DEFAULT.tolerance, excess=DEFAULT.excess), "at both tolerances"),
        Witness(_values(), "an ordinary layer"),
        Witness(_values(scale=DEFAULT.least), "a group of zeros"),
        Witness(_values(code=0.0), "rows of zeros"),
    ),
    violates=(
        Witness(_values(trit=0.0, live=0.0), "a layer of zeros: dead"),
        Witness(_values(trit=2.0), "a weight that is not ternary"),
        Witness(_values(code=128.0), "a code of -128, whose magnitude int8 does not have"),
        Witness(_values(excess=0.5), "rounded towards zero"),
        Witness(_values(deviation=0.02), "another group's scale"),
        Witness(_values(scale=0.0), "a scale of zero"),
    ),
)  # fmt: skip
