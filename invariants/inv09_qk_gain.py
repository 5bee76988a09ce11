"""INV-9 qk-gain: attention scores have the declared golden gain phi^power, and they really depend on q and on k.

Claim: the gain in force is one of the two doubles next to phi^power; on sampled positions the output of every layer and
head is softmax attention with that gain, to within `tolerance`; and the scores' second difference, which is zero where q
or k does not matter, is at least `floor` in every layer and head.
Why it matters: in the seed's best run attention was called on sequences of length 1: a softmax over one score is 1, q
and k had no effect, nothing failed, and the improvement was credited to attention. A gain that is applied twice, or
lost, trains on as silently.
Source: the seed's INV-9, which fixes the gain and never looks at a score. Limits: LIMITS.
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
from karat.core.bounds import lower_endpoint, upper_endpoint
from karat.core.formulas import attention
from karat.core.golden import PHI
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Checked, Exhaustive, FloatLaw, Formula, Identity, Obligation, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops

POWERS = 8
"""Declared powers are -8..8: gains from 0.0213 to 46.98."""


@dataclass(frozen=True)
class GoldenGain:
    """The declared power of phi; how far an output may be from its definition; how little scores may depend on q and k.

    tolerance is relative to the largest value and to one plus the largest score that norms allow (float32: measured at
    1e-6 and below); floor is in units of a score.
    """

    power: int = 2
    tolerance: float = 1e-4
    floor: float = 1e-6

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The largest double <= phi^power and the smallest one >= it: neighbours, or the same."""
        exact = PHI**self.power
        return upper_endpoint(exact), lower_endpoint(exact)

    @property
    def gain(self) -> float:
        """phi^power correctly rounded."""
        return attention.golden_gain(self.power)


def margin(values: Mapping[str, Any], declared: GoldenGain, ops: Ops = FLOAT) -> Number:
    """min(tolerance - deviation, spread - floor) while the gain is next to phi^power, else minus its distance from there."""
    lowest, highest = declared.ends
    off = ops.maximum(lowest - values["gain"], values["gain"] - highest)
    rest = ops.minimum(declared.tolerance - values["deviation"], values["spread"] - declared.floor)
    return ops.where(off <= 0, rest, -off)


DEFAULT = GoldenGain()
_LOW, _HIGH = DEFAULT.ends


def _scaled(v: Any, score_scale: Any, score: Any) -> Any:
    """In one head of two coordinates: the score is gain·q.k / root, and so score^2 · head_dim = gain^2 (q.k)^2."""
    scale = score_scale(v.gain, v.root)
    value = score([v.q1, v.q2], [v.k1, v.k2], scale, v.ops)
    return [scale * v.root == v.gain, value == scale * (v.q1 * v.k1 + v.q2 * v.k2)]


def _squared(v: Any, score_scale: Any) -> Any:
    scale = score_scale(v.gain, v.root)
    return scale * scale * v.head_dim == v.gain * v.gain


def _root(v: Any) -> dict[str, Any]:
    return {"a root": v.root > 0}


def _root_of(v: Any) -> dict[str, Any]:
    return _root(v) | {"of head_dim": v.root * v.root == v.head_dim}


def _sample_head(random: Random) -> dict[str, Any]:
    root = Fraction(random.choice([2, 4, 8, 16, 17]), 2)
    names = ("q1", "q2", "k1", "k2", "gain")
    return {name: Fraction(random.randint(-99, 99), 10) for name in names} | {"root": root, "head_dim": root * root}


def _bilinear(sympy: Any, ops: Any, score: Any, interaction: Any) -> list[Any]:
    """For heads of 1 to 4 coordinates: linear in q, in k and in the scale, and the second difference factors."""
    expressions = []
    for n in range(1, 5):
        q, r, k, m = ([sympy.Symbol(f"{name}{i}") for i in range(n)] for name in "qrkm")
        s, a = sympy.symbols("s a")
        mixed = [a * x + y for x, y in zip(q, r, strict=True)]
        expressions += [
            score(mixed, k, s, ops) - a * score(q, k, s, ops) - score(r, k, s, ops),
            score(k, mixed, s, ops) - a * score(k, q, s, ops) - score(k, r, s, ops),
            score(q, k, a * s, ops) - a * score(q, k, s, ops),
            score(q, k, s, ops) - s * sum(x * y for x, y in zip(q, k, strict=True)),
            interaction(score(q, k, s, ops), score(q, m, s, ops), score(r, k, s, ops), score(r, m, s, ops))
            - s * sum((x - y) * (z - w) for x, y, z, w in zip(q, r, k, m, strict=True)),
        ]
    return expressions


def _matters(v: Any, interaction: Any) -> Any:
    """Any table of four scores: the value in full, and 0 where a row or a column repeats."""
    value = interaction(v.s11, v.s12, v.s21, v.s22)
    return [
        value == v.s11 - v.s12 - v.s21 + v.s22,
        implies((v.s11 == v.s21) & (v.s12 == v.s22), value == 0),
        implies((v.s11 == v.s12) & (v.s21 == v.s22), value == 0),
    ]


def _four(random: Random) -> dict[str, Any]:
    return {name: Fraction(random.randint(-5, 5)) for name in ("s11", "s12", "s21", "s22")}


def _powers_are_rounded(golden_gain: Any, declared: Any) -> Checked:
    """Of each declared power the ends are the doubles next to phi^power, and the gain is one of them, the nearer."""
    for power in range(-POWERS, POWERS + 1):
        exact, gain, (low, high) = PHI**power, golden_gain(power), declared(power).ends
        between = Fraction(low) <= exact and exact <= Fraction(high) and high <= math.nextafter(low, math.inf)
        tight = low == high or (Fraction(low) < exact and exact < Fraction(high))
        other = low if gain == high else high
        if not (between and tight and gain in (low, high)) or declared(power).gain != gain:
            return Checked(0, f"phi^{power}: gain {gain!r}, ends {low!r} and {high!r}")
        if abs(exact - Fraction(gain)) > abs(exact - Fraction(other)):
            return Checked(0, f"phi^{power}: {gain!r} is not the nearest double")
    return Checked(2 * POWERS + 1)


def _six_digits(power: int) -> float:
    return round(attention.golden_gain(power), 6)


def _scales_in_force(score_scale: Any) -> Checked:
    """In float64: scale·sqrt(head_dim) is phi^power to within 2^-50, for every even head_dim up to 1024 and every power."""
    cases = 0
    for power in range(-POWERS, POWERS + 1):
        gain = attention.golden_gain(power)
        low, high = Fraction(gain) * (1 - Fraction(1, 2**50)), Fraction(gain) * (1 + Fraction(1, 2**50))
        for head_dim in range(2, 1025, 2):
            square = Fraction(score_scale(gain, math.sqrt(head_dim))) ** 2 * head_dim
            if not low * low <= square <= high * high:
                return Checked(
                    cases, f"phi^{power}, head_dim {head_dim}: the gain in force is {float(square) ** 0.5!r}"
                )
            cases += 1
    return Checked(cases)


def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    accepted = accepts(distance({"gain": v.gain, "deviation": v.deviation, "spread": v.spread}, DEFAULT, v.ops))
    inside = (v.gain >= _LOW) & (v.gain <= _HIGH) & (v.deviation <= DEFAULT.tolerance) & (v.spread >= DEFAULT.floor)
    return accepted == inside


def _finite(v: Any) -> dict[str, Any]:
    return {"no infinity on the good side": (v.deviation != -math.inf) & (v.spread != math.inf)}


def _distances(v: Any, distance: Any) -> Any:
    """The value in full: of a gain below, above and between its ends."""
    declared = SimpleNamespace(ends=(v.low, v.high), tolerance=v.tolerance, floor=v.floor)
    value = distance({"gain": v.gain, "deviation": v.deviation, "spread": v.spread}, declared, v.ops)
    slack, depth = v.tolerance - v.deviation, v.spread - v.floor
    between = (v.low <= v.gain) & (v.gain <= v.high)
    return [
        implies(v.gain < v.low, value == v.gain - v.low),
        implies(v.gain > v.high, value == v.high - v.gain),
        implies(between & (slack <= depth), value == slack),
        implies(between & (depth < slack), value == depth),
    ]


def _ends_in_order(v: Any) -> dict[str, Any]:
    return {"low <= high": v.low <= v.high}


def _sample_distances(random: Random) -> dict[str, Any]:
    low = Fraction(random.randint(1, 30), 10)
    return {"low": low, "high": low + Fraction(random.randint(0, 9), 10), "gain": Fraction(random.randint(1, 50), 10),
            **{name: Fraction(random.randint(0, 20), 10) for name in ("tolerance", "floor", "deviation", "spread")}}  # fmt: skip


def _readings(random: Random) -> dict[str, float]:
    return {"gain": random.choice([_LOW, _HIGH, 2.618, math.nan, -_HIGH, math.inf]),
            "deviation": random.choice([0.0, 1e-7, 1e-4, 1e-3, math.nan]),
            "spread": random.choice([0.0, 1e-6, 1e-7, 2.0, math.nan])}  # fmt: skip


_HEAD = dict.fromkeys(("q1", "q2", "k1", "k2", "gain", "root"), "real")

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-9.scale", "the scale times sqrt(head_dim) is the gain, and the score is the scale times q.k, for a head of two",
            (attention.score_scale, attention.score), variables=_HEAD, given=_root, show=_scaled, sample=_sample_head),
    Formula("INV-9.square", "scale^2 · head_dim = gain^2, for every head_dim and its root", (attention.score_scale,),
            variables={"gain": "real", "root": "real", "head_dim": "real"}, given=_root_of, show=_squared, sample=_sample_head),
    Identity("INV-9.bilinear", "scores are linear in q, in k and in the scale, and their second difference is "
             "scale·(q1 - q2).(k1 - k2): heads of 1 to 4 coordinates", (attention.score, attention.interaction), show=_bilinear),
    Formula("INV-9.matters", "the second difference of any four scores is zero where q does not matter, and where k does not",
            (attention.interaction,), variables=dict.fromkeys(("s11", "s12", "s21", "s22"), "real"), show=_matters, sample=_four),
    Exhaustive("INV-9.rounded", f"for the powers -{POWERS}..{POWERS} the gain is the double nearest to phi^power, so within one "
               "ulp, and the declared ends are the two doubles next to it, decided exactly", (attention.golden_gain, GoldenGain),
               check=_powers_are_rounded, rivals={"six digits": (_six_digits, GoldenGain)}),
    Exhaustive("INV-9.in-force", "in float64 the scale times sqrt(head_dim) is the gain to within 2^-50, for every even head_dim "
               "up to 1024 and every declared power, decided exactly", (attention.score_scale,), check=_scales_in_force,
               rivals={"the gain twice": (lambda gain, root: gain * gain / root,), "no root": (lambda gain, root: gain,)}),
    Formula("INV-9.margin", "the guard's margin in full: minus the distance of a gain outside its ends, else the smaller of "
            "tolerance - deviation and spread - floor", (margin,),
            variables=dict.fromkeys(("low", "high", "gain", "tolerance", "floor", "deviation", "spread"), "real"),
            given=_ends_in_order, show=_distances, sample=_sample_distances),
    FloatLaw("INV-9.guard", "the guard accepts doubles iff the gain is next to phi^2, the deviation within the tolerance and the "
             "spread at least the floor, NaN included", (margin, verdict.accepts), variables=("gain", "deviation", "spread"),
             given=_finite, show=_guard, sample=_readings),
)  # fmt: skip


def bounds(declared: GoldenGain) -> tuple[Bound, ...]:
    """The declared gain as cited."""
    exact = PHI**declared.power
    return (
        Bound("gain", f"phi^{declared.power} = {exact}", exact.decimal()),
        Bound("tolerance", "declared", f"{declared.tolerance:g} of the largest value"),
        Bound("floor", "declared", f"{declared.floor:g} of a score"),
    )


def required(declared: GoldenGain) -> str:
    """The condition as one line."""
    return (
        f"gain = phi^{declared.power} to one ulp, deviation <= {declared.tolerance:g}, spread >= {declared.floor:g}   "
        f"phi^{declared.power} = {(PHI**declared.power).decimal(6)}"
    )


def _values(gain: float, deviation: float, spread: float) -> dict[str, Any]:
    return {"gain": gain, "deviation": deviation, "spread": spread}


INVARIANT = Invariant(
    id="INV-9",
    slug="qk-gain",
    statement="The gain of attention scores is phi^power to one ulp, the layers' outputs are attention with that gain, and the "
    "scores depend on q and on k.",
    why="Attention over sequences of length 1, or with q or k at zero, or with its gain twice, trains on without a word.",
    unit="",
    sources=("the seed's INV-9, with the scores looked at", "scaled dot-product attention: Vaswani et al. 2017"),
    limits=(
        "Positions are sampled: the first 8 of the first sequence of a batch, in every layer and head.",
        "The tolerance is measured, not derived: float32 attention and its definition differ by rounding.",
        "A gain that is off by less than a thousandth or so in the output alone, not in the declared number, is not seen.",
        "That scores depend on q and k does not say that the dependence is of use; nor does anything prove phi^2 a good gain.",
    ),
    phases=(Phase.BEFORE_STEP, Phase.FINISH),
    quantities=(
        Quantity("gain", "gain", "", "the gain in force, the worst of the layers"),
        Quantity("deviation", "deviation", "", "how far the sampled outputs are from attention with the declared gain, "
                 "relative to the largest value and to 1 + scale·|q||k|, the worst of layers and heads"),
        Quantity("spread", "spread", "", "the largest second difference of the sampled scores, in the head where it is least"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {
            "gain": st.one_of(st.sampled_from([_LOW, _HIGH]), st.floats(0, 8)),
            "deviation": st.one_of(st.floats(0, 2e-4), st.floats()),
            "spread": st.one_of(st.floats(0, 4), st.sampled_from([0.0, 1e-6])),
        }
    ),
    holds=(
        Witness(_values(_HIGH, DEFAULT.tolerance, 1.0), "at the tolerance, the gain one double above phi^2"),
        Witness(_values(_LOW, 1e-7, 1.0), "one double below phi^2"),
        Witness(_values(_HIGH, 0.0, DEFAULT.floor), "scores that barely depend on q and k"),
    ),
    violates=(
        Witness(_values(_HIGH, 1e-7, 0.0), "sequences of length 1, or q or k at zero"),
        Witness(_values(_HIGH, 0.01, 1.0), "the gain applied twice"),
        Witness(_values(math.nextafter(_HIGH, 3), 1e-7, 1.0), "two doubles from phi^2"),
        Witness(_values(math.nextafter(_LOW, 2), 0.0, DEFAULT.floor / 2), "below the floor"),
        Witness(_values(1.0, 0.0, 1.0), "no gain"),
    ),
)  # fmt: skip
