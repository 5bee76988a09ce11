"""INV-4 nca-entropy-band: the Shannon entropy of the automaton's grid stays in its declared band, unit explicit.

Claim: for a grid of 81 cells with 9 states, low <= H <= high with H = -sum p ln p in nats. Default band
[1.5, min(2.8, ln 9)]; certified band [phi, min(phi^2, ln 9)].
Why it matters: a grid that collapses to one state, or dissolves into noise, goes on costing compute.
Source: the seed's INV-4. Its upper end 2.8 can never bind: H is in nats there and ln 9 = 2.197…; in bits it could
(log2 9 = 3.17). Its band width of "1, an integer" is phi^2 - phi = 1, by definition of phi, and 2.8 - 1.5 = 1.3.
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
from karat.core.bounds import Exact as ExactNumber
from karat.core.bounds import Interval, Log, least, less_equal
from karat.core.formulas import entropy, schedule
from karat.core.golden import PHI
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import (
    Checked,
    Exact,
    Exhaustive,
    FloatLaw,
    Formula,
    Identity,
    Obligation,
    Property,
    implies,
)
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops

STATES = 9
CELLS = 81
LN9 = Log(Fraction(STATES))


@dataclass(frozen=True)
class EntropyBand:
    """The declared band in nats; the upper end is capped at ln 9, which no distribution on nine states exceeds."""

    low: ExactNumber = Fraction(3, 2)
    high: ExactNumber = Fraction(14, 5)

    @functools.cached_property
    def interval(self) -> Interval:
        """The exact band [low, min(high, ln 9)]."""
        return Interval(self.low, least(self.high, LN9))

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The float64 ends, rounded inward."""
        return self.interval.at_least, self.interval.at_most


def margin(values: Mapping[str, Any], band: EntropyBand, ops: Ops = FLOAT) -> Number:
    """min(H - low, high - H) in nats, negative outside."""
    low, high = band.ends
    return ops.minimum(high - values["entropy"], values["entropy"] - low)


DEFAULT = EntropyBand()
CERTIFIED = EntropyBand(PHI, PHI**2)
P = [f"p{k}" for k in range(STATES)]


def _distribution(v: Any) -> dict[str, Any]:
    p = [getattr(v, name) for name in P]
    return {"p >= 0": functools.reduce(lambda a, b: a & b, [x >= 0 for x in p]), "sum p = 1": sum(p[1:], p[0]) == 1}


def _between(v: Any, entropy_nats: Any) -> Any:
    h = entropy_nats([getattr(v, name) for name in P], v.ops)
    return [h >= 0, h <= v.ops.log(Fraction(STATES))]


def _some_distribution(random: Random) -> dict[str, Any]:
    weights = [random.randint(0, 20) for _ in P]
    weights[0] += 1
    return {name: Fraction(w, sum(weights)) for name, w in zip(P, weights, strict=True)}


def _uniform_is_ln(sympy: Any, ops: Any, entropy_nats: Any) -> Any:
    return [entropy_nats([sympy.Rational(1, k)] * k, ops) - sympy.log(k) for k in (2, 3, STATES, 16)]


def _tangent(sympy: Any, ops: Any) -> Any:
    """x ln x minus its tangent at c: value and slope 0 at c, second derivative 1/x > 0: so >= 0 for x > 0."""
    x, c = sympy.symbols("x c", positive=True)
    gap = ops.xlogx(x) - (x * ops.log(c) + x - c)
    return [gap.subs(x, c), sympy.diff(gap, x).subs(x, c), sympy.diff(gap, x, 2) - 1 / x]


def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    declared = SimpleNamespace(ends=(v.low, v.high))
    accepted = accepts(distance({"entropy": v.h}, declared, v.ops))
    inside = (v.low <= v.h) & (v.h <= v.high)  # an equivalence in three parts: Z3 decides them faster
    return [implies(accepted, v.low <= v.h), implies(accepted, v.h <= v.high), implies(inside, accepted)]


def _finite_ends(v: Any) -> dict[str, Any]:
    return {"finite ends": (v.low > -math.inf) & (v.low <= v.high) & (v.high < math.inf)}


def _any_entropy(random: Random) -> dict[str, float]:
    return {"h": random.choice([random.uniform(0, 3), math.nan, math.inf]), "low": 1.5, "high": 2.0 + random.random()}


def _ceilings(most_nats: Any) -> Checked:
    for states in range(2, 65):
        top, exact = most_nats(states), Log(Fraction(states))
        if not less_equal(Fraction(top), exact) or less_equal(Fraction(math.nextafter(top, 9)), exact):
            return Checked(states - 2, f"most_nats({states}) = {top!r}")
    return Checked(63)


def _inward(ends: tuple[float, float]) -> bool:
    low, high = Fraction(ends[0]), Fraction(ends[1])
    return less_equal(DEFAULT.interval.low, low) and less_equal(high, DEFAULT.interval.high)


def _out(ends: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    return (math.nextafter(ends[0], 0), ends[1]), (ends[0], math.nextafter(ends[1], 3))


def _clamped(v: Any, clamp: Any) -> Any:
    h = clamp(v.x, 0.0, entropy.most_nats(STATES))
    return [h >= 0.0, h <= entropy.most_nats(STATES)]


def _histograms(total: int, parts: int) -> Any:
    for cuts in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = (-1, *cuts, total + parts - 1)
        yield [b - a - 1 for a, b in itertools.pairwise(edges)]


def _close_to_exact(entropy_of_counts: Any) -> Checked:
    """Every histogram of 9 cells on 9 states, against an enclosure of its exact entropy."""
    cases = 0
    for counts in _histograms(STATES, STATES):
        if counts != sorted(counts, reverse=True):
            continue  # the same up to order of the states; one order each
        h = Fraction(entropy_of_counts(counts))
        low = high = Fraction(0)
        for count in filter(None, counts):
            a, b = Log(Fraction(STATES, count)).enclosure(80)
            low, high = low + Fraction(count, STATES) * a, high + Fraction(count, STATES) * b
        if not low - Fraction(1, 2**50) <= h <= high + Fraction(1, 2**50):
            return Checked(cases, f"histogram {counts}: {float(h)!r}, exactly {float(low)!r}")
        if len(list(filter(None, counts))) == 1 and str(entropy_of_counts(counts)) != "0.0":
            return Checked(cases, f"histogram {counts}: the entropy of a point mass is {entropy_of_counts(counts)!r}")
        if h < 0 or not less_equal(h, LN9):
            return Checked(cases, f"histogram {counts}: {float(h)!r} is outside [0, ln 9]")
        cases += 1
    return Checked(cases)


def _in_bits(counts: Any) -> float:
    return float(entropy.entropy_of_counts_nats(counts)) / math.log(2)


def _unclamped(counts: Any) -> float:
    return float(entropy.entropy_nats(entropy.frequencies(counts))) * (1 + 2**-51)


def _grids(st: Any) -> Any:
    return st.lists(st.integers(0, STATES - 1), min_size=CELLS, max_size=CELLS).map(
        lambda grid: [grid.count(state) for state in range(STATES)]
    )


def _order_does_not_matter(counts: Any, entropy_of_counts: Any) -> bool:
    h = entropy_of_counts(counts)
    return bool(abs(h - entropy_of_counts(sorted(counts))) < 1e-14 and 0 <= h <= math.log(STATES))


def _by_first_state(counts: Any) -> float:
    return float(0.1 * counts[0] / CELLS)


OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-4.range", "0 <= H <= ln 9 nats for every distribution on nine states", (entropy.entropy_nats,),
            variables=dict.fromkeys(P, "real"), given=_distribution, show=_between, sample=_some_distribution,
            tangents=(Fraction(1, STATES),)),
    Identity("INV-4.uniform", "H = ln K at the uniform distribution on K states: the upper bound is reached",
             (entropy.entropy_nats,), show=_uniform_is_ln),
    Identity("INV-4.tangent", "x ln x lies above each of its tangents: the fact about ln that INV-4.range uses", (),
             show=_tangent),
    Exact("INV-4.unreachable-nats", "the seed's upper end 2.8 is above ln 9: in nats it can never bind", (less_equal,),
          show=lambda end: less_equal(LN9, end), at=Fraction(14, 5), not_at=(Fraction(2), Fraction(21972, 10000))),
    Exact("INV-4.unreachable-phi", "phi^2 is above ln 9 as well", (less_equal,),
          show=lambda end: less_equal(LN9, end), at=PHI**2, not_at=(PHI,)),
    Exact("INV-4.reachable-bits", "2.8 is below log2 9: in bits it does bind", (less_equal,),
          show=lambda end: less_equal(end, Log(Fraction(STATES), Fraction(2))), at=Fraction(14, 5),
          not_at=(Fraction(16, 5),)),
    Exact("INV-4.certified", "the certified band [phi, min(phi^2, ln 9)] lies inside the default one", (less_equal,),
          show=lambda low: less_equal(DEFAULT.interval.low, low) and less_equal(CERTIFIED.interval.high,
          DEFAULT.interval.high), at=PHI, not_at=(PHI - Fraction(1, 2),)),
    Exact("INV-4.width", "phi^2 - phi = 1: the seed's integer width, by definition of phi; its own band is 1.3 wide", (),
          show=lambda width: width == PHI**2 - PHI, at=1, not_at=(Fraction(13, 10),)),
    Exact("INV-4.inward", "the float64 ends of the default band lie inside the exact one, and the next doubles do not",
          (less_equal,), show=_inward, at=DEFAULT.ends, not_at=_out(DEFAULT.ends)),
    FloatLaw("INV-4.guard", "the guard accepts a double iff it is in the band: for all doubles, all finite ends",
             (margin, verdict.accepts), variables=("h", "low", "high"), given=_finite_ends, show=_guard,
             sample=_any_entropy),
    Exhaustive("INV-4.ceiling", "the ceiling of the computed entropy is the largest double <= ln K, for K = 2..64 states",
               (entropy.most_nats,), check=_ceilings, rivals={"rounded to nearest": (lambda k: math.log(k) * (1 + 2**-52),)}),
    FloatLaw("INV-4.clamped", "the computed entropy is a double in [0, ln 9] whatever rounding did before the clamp",
             (schedule.clamp,), variables=("x",), show=_clamped,
             sample=lambda random: {"x": random.choice([random.uniform(-1, 3), math.nan])}),
    Exhaustive("INV-4.float", "the computed entropy is within 2^-50 nats of the exact one and in [0, ln 9]: every "
               "histogram of 9 cells on 9 states, up to order", (entropy.entropy_of_counts_nats,),
               check=_close_to_exact, rivals={"in bits": (_in_bits,), "no clamp, 2 ulp high": (_unclamped,)}),
    Property("INV-4.grid", "on grids of 81 cells H is in [0, ln 9] and does not depend on the names of the states",
             (entropy.entropy_of_counts_nats,), strategy=_grids, holds=_order_does_not_matter,
             rivals={"looks at one state": (_by_first_state,)}, examples=200),
)  # fmt: skip


def bounds(band: EntropyBand) -> tuple[Bound, ...]:
    """The band as cited."""
    low, high = band.interval.low, band.interval.high
    return (
        Bound("lower", f"{low}", f"{band.ends[0]:.10g} nats"),
        Bound("upper", f"min({band.high}, ln {STATES}) = {high}", f"{band.ends[1]:.10g} nats"),
        Bound("certified", f"[phi, min(phi^2, ln {STATES})]", CERTIFIED.interval.decimal() + " nats"),
    )


def required(band: EntropyBand) -> str:
    """The condition as one line."""
    return f"{band.interval.low} <= H <= {band.interval.high}   {band.interval.decimal()} nats"


INVARIANT = Invariant(
    id="INV-4",
    slug="nca-entropy-band",
    statement="The Shannon entropy of the 9x9 grid with 9 states is in [1.5, min(2.8, ln 9)] nats.",
    why="A grid that collapses to few states no longer regularises anything, and nothing else shows it.",
    unit="nats",
    sources=("the seed's INV-4, with its unit made explicit",),
    limits=(
        "The band is a declaration: no property of the automaton implies it, so it is watched, not proved, of a run.",
        "One grid is looked at each step: the one that the objective evolved for this batch.",
        "Entropy sees the histogram of states, not their places: a sorted grid and a mixed one are equal.",
    ),
    phases=(Phase.BEFORE_STEP,),
    quantities=(Quantity("entropy", "H", "nats", "Shannon entropy of the histogram of the grid's 81 states"),),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries({"entropy": st.one_of(st.floats(0, 2.5), st.floats())}),
    holds=(
        Witness({"entropy": entropy.entropy_of_counts_nats([9] * 9)}, "the uniform grid, at the upper end"),
        Witness({"entropy": 1.5}, "the lower end"),
    ),
    violates=(
        Witness({"entropy": 0.0}, "a collapsed grid"),
        Witness({"entropy": math.nextafter(1.5, 0)}, "one double below the lower end"),
        Witness({"entropy": 2.8}, "the seed's upper end: not an entropy of nine states in nats"),
        Witness({"entropy": entropy.entropy_of_counts_nats([9] * 9) / math.log(2)}, "the uniform grid, in bits"),
    ),
)
