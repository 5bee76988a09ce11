"""INV-7 victory-gate: three runs are below the target by a test, not by luck.

Claim: the gate is met iff three runs, finished and of distinct seeds, have a sample variance above zero and a mean
below the target with p < alpha in Student's one-sided one-sample t-test; decided exactly, on the rationals that the
reports hold.
Why it matters: one good seed is not a result, and three equal numbers are one number. The seed of this project states
"p < 0.01 on three seeds", never calls its test, and accepts three runs that do not differ.
Source: the seed's INV-7. Its reading "all three below 1.5, so p < 0.01" is false and is kept below as a refutation;
the converse is true.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import victory
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Exact, Formula, Identity, Obligation, Property, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops

LARGEST_ALPHA = Fraction(1, 20)
"""Up to here p < alpha implies that every one of the three runs is below the target."""


@dataclass(frozen=True)
class Gate:
    """The declared target in bits per byte and the level of the test, as decimals; 0 < alpha <= 1/20."""

    target: Fraction = Fraction(3, 2)
    alpha: Fraction = Fraction(1, 100)


def margin(values: Mapping[str, Any], gate: Gate, ops: Ops = FLOAT) -> Number:
    """4 alpha (1 - alpha) lead^2 - (1 - 2 alpha)^2 scatter, exactly, in (bits per byte)^2; negative where not met."""
    return victory.gate_margin(values["runs"], gate.target, gate.alpha, ops)


DEFAULT = Gate()
THREE = {"a": "real", "b": "real", "c": "real", "target": "real", "alpha": "real"}
ABSTRACT = {"lead": "real", "scatter": "real", "alpha": "real"}


def _runs(v: Any) -> list[Any]:
    return [v.a, v.b, v.c]


def _level(v: Any) -> dict[str, Any]:
    return {"0 < alpha <= 1/20": (v.alpha > 0) & (v.alpha <= LARGEST_ALPHA)}


def _student(v: Any) -> dict[str, Any]:
    return {
        "0 < alpha": v.alpha > 0,
        "alpha < 1/2": 2 * v.alpha < 1,
        "the runs differ": v.scatter > 0,
        "t^2 = 2 lead^2 / scatter": v.t * v.t * v.scatter == 2 * v.lead * v.lead,
        "t and lead have opposite signs": ((v.t < 0) & (v.lead > 0)) | ((v.t >= 0) & (v.lead <= 0)),
        "scale > 0": v.scale > 0,
        "scale = 1 / sqrt(2 + t^2)": v.scale * v.scale * (2 + v.t * v.t) == 1,
    }


def _sample_student(random: Random) -> dict[str, Any]:
    """Rational t with a rational sqrt(2 + t^2): t = (k^2 - 2) / 2k."""
    k = Fraction(random.choice([random.randint(1, 40), random.randint(1, 400)]), random.randint(1, 99))
    t = (k * k - 2) / (2 * k)
    lead = -t * Fraction(random.randint(1, 50), 100)
    return {"t": t, "scale": 2 * k / (k * k + 2), "lead": lead, "scatter": 2 * lead * lead / (t * t),
            "alpha": Fraction(random.randint(1, 499), 1000)}  # fmt: skip


def _decides(v: Any, significance: Any, lower_tail: Any) -> Any:
    return (significance(v.lead, v.scatter, v.alpha, v.ops) > 0) == (lower_tail(v.t, v.scale) < v.alpha)


def _density(sympy: Any, ops: Any, lower_tail: Any) -> dict[str, Any]:
    """The derivative of the closed form is the density of Student's t with nu = 2, and it starts at 0 and ends at 1."""
    t, nu = sympy.symbols("t nu", real=True)
    closed = lower_tail(t, 1 / sympy.sqrt(2 + t**2))
    density = sympy.gamma((nu + 1) / 2) / (sympy.sqrt(nu * sympy.pi) * sympy.gamma(nu / 2))
    density = (density * (1 + t**2 / nu) ** (-(nu + 1) / 2)).subs(nu, 2)
    return {
        "density": sympy.radsimp(sympy.simplify(sympy.diff(closed, t) - density)),
        "from 0": sympy.limit(closed, t, -sympy.oo),
        "to 1": sympy.limit(closed, t, sympy.oo) - 1,
    }


def _definitions(sympy: Any, ops: Any, lead: Any, scatter: Any) -> dict[str, Any]:
    """lead and scatter in terms of the sample mean and the sample variance."""
    runs = list(sympy.symbols("a b c"))
    target = sympy.Symbol("target")
    mean = sum(runs) / 3
    variance = sum((x - mean) ** 2 for x in runs) / 2
    return {"lead": lead(runs, target) - 3 * (target - mean), "scatter": scatter(runs) - 6 * variance}


def _pointwise(v: Any, significance: Any) -> Any:
    found = significance(v.lead, v.scatter, v.alpha, v.ops)
    gain = 4 * v.alpha - 4 * v.alpha * v.alpha
    loss = (1 - 4 * v.alpha + 4 * v.alpha * v.alpha) * v.scatter
    return [
        implies(v.lead >= 0, found == gain * v.lead * v.lead - loss),
        implies(v.lead < 0, found == -gain * v.lead * v.lead - loss),
    ]


def _assembled(v: Any, distance: Any, significance: Any, lead: Any, scatter: Any) -> Any:
    """The margin of the guard in terms of the formulas that the other obligations are about."""
    found = distance({"runs": _runs(v)}, Gate(v.target, v.alpha), v.ops)
    spread = scatter(_runs(v))
    expected = significance(lead(_runs(v), v.target), spread, v.alpha, v.ops)
    differ = spread > 0
    return [
        implies(differ & (expected != 0), found == expected),
        implies(differ & (expected == 0), found == -1),
        implies(spread <= 0, found == -1),
    ]


def _met(v: Any, distance: Any) -> Any:
    return distance({"runs": _runs(v)}, Gate(v.target, v.alpha), v.ops) >= 0


def _all_below(v: Any, distance: Any) -> Any:
    met = _met(v, distance)
    return [implies(met, run < v.target) for run in _runs(v)]


def _equal_runs(v: Any, distance: Any) -> Any:
    return distance({"runs": [v.a, v.a, v.a]}, Gate(v.target, v.alpha), v.ops) < 0


def _lowered(v: Any, significance: Any) -> Any:
    before = significance(v.lead, v.scatter, v.alpha, v.ops)
    return significance(v.lead + 3 * v.by, v.scatter, v.alpha, v.ops) >= before


def _lowered_runs(sympy: Any, ops: Any, lead: Any, scatter: Any) -> dict[str, Any]:
    a, b, c, by, target = sympy.symbols("a b c by target")
    lower = [a - by, b - by, c - by]
    return {
        "lead": lead(lower, target) - lead([a, b, c], target) - 3 * by,
        "scatter": scatter(lower) - scatter([a, b, c]),
    }


def _looser(v: Any, significance: Any) -> Any:
    before = significance(v.lead, v.scatter, v.alpha, v.ops)
    return implies(before > 0, significance(v.lead, v.scatter, v.looser, v.ops) > 0)


def _seed_reading(v: Any, distance: Any) -> Any:
    return distance({"runs": _runs(v)}, DEFAULT, v.ops) >= 0


def _sample(random: Random) -> dict[str, Any]:
    """Runs on both sides of the boundary: close together and far apart, around a mean near the target."""
    target = Fraction(random.randint(100, 300), 100)
    mean = target - Fraction(random.randint(-20, 200), 1000)
    spread = random.choice([3, 30, 200])
    runs = [mean + Fraction(random.randint(-spread, spread), 1000) for _ in range(3)]
    alpha = Fraction(random.randint(1, 50), 1000)
    return {"a": runs[0], "b": runs[1], "c": runs[2], "target": target, "alpha": alpha}


def _sample_abstract(random: Random) -> dict[str, Any]:
    values = _sample(random)
    runs, alpha = [values[name] for name in "abc"], values["alpha"]
    return {"lead": victory.lead(runs, values["target"]), "scatter": victory.scatter(runs), "alpha": alpha,
            "by": Fraction(random.randint(0, 300), 1000),
            "looser": alpha + (LARGEST_ALPHA - alpha) * Fraction(random.randint(0, 10), 10)}  # fmt: skip


def _sample_below(random: Random) -> dict[str, Any]:
    return dict(zip("abc", sorted(Fraction(n, 1000) for n in random.sample(range(1300, 1500), 3)), strict=True))


def decimals(*runs: str) -> list[Fraction]:
    """Runs as the decimals that they are written as."""
    return [Fraction(run) for run in runs]


def _is_met(runs: Any) -> bool:
    return bool(margin({"runs": decimals(*runs)}, DEFAULT) >= 0)


def _lower_mean_loses(lower: Any) -> bool:
    """(1.45, 1.44, 1.46) meets the gate; `lower` has a lower mean and does not."""
    winner = ("1.45", "1.44", "1.46")
    return _is_met(winner) and sum(decimals(*lower)) < sum(decimals(*winner)) and not _is_met(lower)


def _agrees_with_floats(value: Any, distance: Any) -> bool:
    """The exact decision against a t-test in floating point by the definitions, where the two are not a hair apart."""
    runs, target, alpha = value
    exact = bool(distance({"runs": [Fraction(run) for run in runs]}, Gate(Fraction(target), Fraction(alpha))) >= 0)
    deviation = statistics.stdev(runs)
    if deviation == 0:
        return not exact
    t = (statistics.fmean(runs) - target) / (deviation / math.sqrt(3))
    p = 0.5 + t / (2 * math.sqrt(2 + t * t))
    return bool(abs(p - alpha) < 1e-9 or exact == (p < alpha))


def _two_sided(values: Mapping[str, Any], gate: Gate, ops: Ops = FLOAT) -> Number:
    return victory.gate_margin(values["runs"], gate.target, gate.alpha / 2, ops)


def _population_variance(values: Mapping[str, Any], gate: Gate, ops: Ops = FLOAT) -> Number:
    ahead, spread = victory.lead(values["runs"], gate.target), victory.scatter(values["runs"]) * Fraction(2, 3)
    return victory.significance(ahead, spread, gate.alpha, ops)


_PAIR = (victory.lead, victory.scatter)

OBLIGATIONS: tuple[Obligation, ...] = (
    Identity("INV-7.density", "the derivative of 1/2 + t / (2 sqrt(2 + t^2)) is the density of Student's t with two degrees "
             "of freedom; it rises from 0 to 1", (victory.lower_tail,), show=_density),
    Identity("INV-7.statistic", "lead = 3 (target - mean) and scatter = 6 s^2 with the sample variance s^2, so that "
             "t^2 = 3 (mean - target)^2 / s^2 = 2 lead^2 / scatter", _PAIR, show=_definitions),
    Formula("INV-7.significance", "significance is 4 alpha (1 - alpha) lead |lead| - (1 - 2 alpha)^2 scatter, everywhere",
            (victory.significance,), variables=ABSTRACT, show=_pointwise, sample=_sample_abstract),
    Formula("INV-7.exact", "the significance is positive iff P(T <= t) < alpha: the rational comparison is the t-test",
            (victory.significance, victory.lower_tail),
            variables={"lead": "real", "scatter": "real", "alpha": "real", "t": "real", "scale": "real"},
            given=_student, show=_decides, sample=_sample_student),
    Formula("INV-7.margin", "the guard's margin is the significance of the three runs, and -1 where they are equal or p = alpha",
            (margin, victory.significance, *_PAIR), variables=THREE, show=_assembled, sample=_sample),
    Formula("INV-7.all-below", "where the gate is met each of the three runs is below the target", (margin,),
            variables=THREE, given=_level, show=_all_below, sample=_sample),
    Formula("INV-7.equal-runs", "three equal runs never meet the gate, however low", (margin,),
            variables=THREE, show=_equal_runs, sample=_sample),
    Identity("INV-7.lowered-runs", "lowering all three runs by the same amount adds three times that to the lead and leaves "
             "the scatter", _PAIR, show=_lowered_runs),
    Formula("INV-7.lowered", "more lead with the same scatter is never less significant: lowering all runs by the same amount "
            "never loses the gate", (victory.significance,), variables=ABSTRACT | {"by": "real"},
            given=lambda v: _level(v) | {"by >= 0": v.by >= 0}, show=_lowered, sample=_sample_abstract),
    Formula("INV-7.looser", "what is significant at a level is significant at every looser one", (victory.significance,),
            variables=ABSTRACT | {"looser": "real"}, show=_looser, sample=_sample_abstract,
            given=lambda v: _level(v) | {"scatter >= 0": v.scatter >= 0,
                                         "looser": (v.alpha <= v.looser) & (v.looser <= LARGEST_ALPHA)}),
    Formula("INV-7.seed-all-below", "three runs below 1.5 have p < 0.01", (margin,),
            variables={"a": "real", "b": "real", "c": "real"}, show=_seed_reading, sample=_sample_below, must_fail=True,
            given=lambda v: {"all below 1.5": (v.a < Fraction(3, 2)) & (v.b < Fraction(3, 2)) & (v.c < Fraction(3, 2)),
                             "they differ": (v.a < v.b) & (v.b < v.c)}),
    Exact("INV-7.lower-mean", "(1.42, 1.35, 1.47) does not meet the gate although (1.45, 1.44, 1.46) does and its mean is "
          "lower: p = 0.065 and 0.0065", (margin,), show=_lower_mean_loses, at=("1.42", "1.35", "1.47"),
          not_at=(("1.42", "1.41", "1.43"), ("1.46", "1.45", "1.47"))),
    Exact("INV-7.known", "(1.45, 1.44, 1.46) meets the gate: p = 0.0065", (margin,), show=_is_met,
          at=("1.45", "1.44", "1.46"), not_at=(("1.49", "1.48", "1.47"), ("1.55", "1.56", "1.54"), ("1.4", "1.4", "1.4"))),
    Property("INV-7.float", "the exact decision is that of the t-test in floating point, where p is not within 1e-9 of alpha",
             (margin,), holds=_agrees_with_floats,
             strategy=lambda st: st.tuples(st.lists(st.integers(12_000, 16_000).map(lambda n: n / 10_000), min_size=3,
                                                    max_size=3),
                                           st.sampled_from([1.5, 1.4, 1.6]), st.floats(0.0001, 0.05)),
             rivals={"two-sided": (_two_sided,), "variance over n": (_population_variance,)}, examples=2000),
)  # fmt: skip


def bounds(gate: Gate) -> tuple[Bound, ...]:
    """The gate as cited."""
    left, right = 4 * gate.alpha * (1 - gate.alpha), (1 - 2 * gate.alpha) ** 2
    critical = math.sqrt(2 * right / left)
    return (
        Bound("target", str(gate.target), f"{float(gate.target):g} bits per byte"),
        Bound("alpha", str(gate.alpha), f"{float(gate.alpha):g}, one-sided"),
        Bound("lead^2/scatter", f"above {right / left}", f"{float(right / left):.6g}"),
        Bound("t", f"below -sqrt({2 * right / left})", f"{-critical:.6g}, two degrees of freedom"),
    )


def required(gate: Gate) -> str:
    """The condition as one line."""
    left, right = 4 * gate.alpha * (1 - gate.alpha), (1 - 2 * gate.alpha) ** 2
    return (
        f"mean < {float(gate.target):g}, variance > 0 and p < {float(gate.alpha):g} on three runs: "
        f"{float(left):g} lead^2 > {float(right):g} scatter, lead = 3·target - sum, scatter = 6 s^2"
    )


def _values(*runs: str) -> dict[str, Any]:
    return {"runs": decimals(*runs)}


INVARIANT = Invariant(
    id="INV-7",
    slug="victory-gate",
    statement="Three finished runs of distinct seeds differ, and their mean is below the target with p < alpha in Student's "
    "one-sided one-sample t-test.",
    why="One seed below the target is luck until a test says otherwise; three equal runs are one run.",
    unit="(bits per byte)^2",
    sources=("the seed's INV-7, decided exactly", "Student 1908: The probable error of a mean"),
    limits=(
        "The t-test assumes that the runs of one configuration are independent and normal: three runs cannot show it.",
        "Seeds, target and alpha have to be chosen before the runs: the best three of many seeds void p.",
        "A lower mean can fail where a higher one passes: the spread decides too.",
        "For other than three runs the command `trainer gate` asks SciPy: tested, not proved.",
    ),
    phases=(Phase.FINISH,),
    quantities=(
        Quantity("runs", "runs", "bits per byte", "the final validation loss of each run, exactly as reported", ("3",)),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {"runs": st.lists(st.integers(1400, 1520).map(lambda n: Fraction(n, 1000)), min_size=3, max_size=3)}
    ),
    holds=(
        Witness(_values("1.45", "1.44", "1.46"), "p = 0.0065"),
        Witness(_values("1.4", "1.4", "1.401"), "a small spread well below"),
    ),
    violates=(
        Witness(_values("1.49", "1.48", "1.47"), "all below the target, p = 0.037"),
        Witness(_values("1.42", "1.35", "1.47"), "a lower mean, and more spread: p = 0.065"),
        Witness(_values("1.4", "1.4", "1.4"), "three equal runs"),
        Witness(_values("1.55", "1.54", "1.56"), "above the target"),
    ),
)
