"""INV-1 descent: a small enough gradient step lowers a smooth loss; and the smoothed loss of a run does not rise.

Claim, proved: on an L-smooth loss a step of rate 0 <= lr <= 1/L along the gradient lowers the loss by at least
lr/2 |g|^2, and a rate above 2/L raises it on a quadratic. Claim, watched, STATISTICAL: of two adjacent windows of step
losses the later mean is not above the earlier by more than z standard errors and a tolerance.
Why it matters: a rate that jumps or weights that are damaged raise the loss long before it is not a number.
Source: the seed's INV-1, which takes the descent lemma and "the gradient is never zero" as axioms. The first follows
from smoothness; the second contradicts having a minimum and is kept below as a refutation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import descent
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Formula, Identity, Obligation, Property, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Windows:
    """Two adjacent windows of `window` step losses; how many standard errors, and bits per byte besides, are noise."""

    window: int = 60
    z: float = 6.0
    tolerance: float = 0.05


def margin(values: Mapping[str, Any], windows: Windows, ops: Ops = FLOAT) -> Number:
    """z^2 (variances)/window + tolerance^2 - rise |rise| in (bits per byte)^2; negative where the loss has risen."""
    early = (values["early_mean"], values["early_variance"])
    late = (values["late_mean"], values["late_variance"])
    return descent.rise_margin(early, late, windows.window, windows.z, windows.tolerance, ops)


DEFAULT = Windows()


def seed_slope(t: Number, smoothness: Number, minimum: Number) -> Number:
    """The derivative of L/2 (t - m)^2, a loss to which the seed's axioms are meant to apply."""
    return smoothness * (t - minimum)


def _rate(v: Any) -> dict[str, Any]:
    return {"lr >= 0": v.lr >= 0, "lr <= 1/L": v.lr * v.smoothness <= 1}


def _descends(v: Any, step: Any, bound: Any, descent_of: Any) -> Any:
    """One coordinate: from the definition of smoothness to the descent."""
    (y,) = step([v.x], [v.g], v.lr)
    smooth = v.after <= bound(v.before, [v.g], [y - v.x], v.smoothness, v.ops)
    return implies(smooth, v.after <= v.before - descent_of([v.g], v.lr, v.ops))


def _remainder(sympy: Any, ops: Any, step: Any) -> dict[str, Any]:
    """Any number of coordinates up to four: what the bound leaves over is -lr/2 (1 - L lr) |g|^2."""
    lr, smoothness, value = sympy.symbols("lr L f")
    left = {}
    for n in (1, 2, 3, 4):
        x, g = list(sympy.symbols(f"x:{n}")), list(sympy.symbols(f"g:{n}"))
        move = [after - before for after, before in zip(step(x, g, lr), x, strict=True)]
        square = sum(part**2 for part in g)
        bound = value + sum(a * b for a, b in zip(g, move, strict=True)) + smoothness * sum(m**2 for m in move) / 2
        left[f"{n} coordinates"] = bound - (value - lr * square / 2) + lr * (1 - smoothness * lr) * square / 2
    return left


def _bound_is(v: Any, bound: Any, descent_of: Any) -> Any:
    """Both formulas for three coordinates, term by term."""
    found = bound(v.before, [v.g, v.h, v.k], [v.x, v.y, v.w], v.smoothness, v.ops)
    squares = v.x * v.x + v.y * v.y + v.w * v.w
    return [
        2 * (found - v.before - v.g * v.x - v.h * v.y - v.k * v.w) == v.smoothness * squares,
        2 * descent_of([v.g, v.h, v.k], v.lr, v.ops) == v.lr * (v.g * v.g + v.h * v.h + v.k * v.k),
    ]


def _quadratic(v: Any, step: Any) -> tuple[Any, Any]:
    """L/2 (x^2 + y^2) before and after a step along its gradient."""
    before = v.smoothness * (v.x * v.x + v.y * v.y) / 2
    x, y = step([v.x, v.y], [v.smoothness * v.x, v.smoothness * v.y], v.lr)
    return before, v.smoothness * (x * x + y * y) / 2


def _attained(v: Any, step: Any, descent_of: Any) -> Any:
    before, after = _quadratic(v, step)
    return after == before - descent_of([v.smoothness * v.x, v.smoothness * v.y], v.lr, v.ops)


def _rises(v: Any, step: Any) -> Any:
    before, after = _quadratic(v, step)
    return after > before


def _any_rate_descends(v: Any, step: Any) -> Any:
    before, after = _quadratic(v, step)
    return after <= before


def _stationary(v: Any, descent_of: Any) -> Any:
    return implies(v.before <= v.before - descent_of([v.g], v.lr, v.ops), v.g == 0)


def _never_stationary(v: Any, slope: Any) -> Any:
    g = slope(v.t, v.smoothness, v.minimum)
    return g * g > 0


def _statistics(v: Any, mean: Any, variance: Any) -> Any:
    """Windows of two, three and four losses, term by term."""
    a, b, c, d = v.a, v.b, v.c, v.d
    return [
        2 * mean([a, b], v.ops) == a + b,
        3 * mean([a, b, c], v.ops) == a + b + c,
        4 * mean([a, b, c, d], v.ops) == a + b + c + d,
        2 * variance([a, b], v.ops) == (a - b) * (a - b),
        3 * variance([a, b, c], v.ops) == a * a + b * b + c * c - a * b - b * c - c * a,
        12 * variance([a, b, c, d], v.ops)
        == 3 * (a * a + b * b + c * c + d * d) - 2 * (a * b + a * c + a * d + b * c + b * d + c * d),
    ]


def _margin_is(v: Any, distance: Any, rise_margin: Any) -> Any:
    found = distance(_observation(v), Windows(v.window, v.z, v.tolerance), v.ops)
    early, late = (v.early_mean, v.early_variance), (v.late_mean, v.late_variance)
    rise = v.late_mean - v.early_mean
    left = v.window * (found - v.tolerance * v.tolerance)
    noise = v.z * v.z * (v.early_variance + v.late_variance)
    return [
        found == rise_margin(early, late, v.window, v.z, v.tolerance, v.ops),
        implies(rise >= 0, left == noise - v.window * rise * rise),
        implies(rise < 0, left == noise + v.window * rise * rise),
    ]


def _means(v: Any, distance: Any) -> Any:
    """allowed >= 0 with allowed^2 = z^2 se^2 + tolerance^2: the guard accepts iff the rise is at most that."""
    accepted = distance(_observation(v), Windows(v.window, v.z, v.tolerance), v.ops) >= 0
    return accepted == (v.late_mean - v.early_mean <= v.allowed)


def _observation(v: Any) -> dict[str, Any]:
    return {name: getattr(v, name) for name in OBSERVED}


OBSERVED = ("early_mean", "early_variance", "late_mean", "late_variance")


def _allowed(v: Any) -> dict[str, Any]:
    noise = v.z * v.z * (v.early_variance + v.late_variance)
    return {
        "window > 0": v.window > 0,
        "allowed >= 0": v.allowed >= 0,
        "allowed^2": (v.allowed * v.allowed - v.tolerance * v.tolerance) * v.window == noise,
    }


def _sample(random: Random) -> dict[str, Any]:
    smoothness = Fraction(random.randint(1, 400), 10)
    lr = Fraction(random.randint(0, 100), 100) / smoothness
    values = {name: Fraction(random.randint(-99, 99), 10) for name in ("x", "y", "w", "g", "h", "k", "t", "minimum")}
    before = Fraction(random.randint(0, 99), 10)
    after = before - lr * values["g"] ** 2 * Fraction(random.randint(0, 30), 10)
    return values | {"smoothness": smoothness, "lr": lr, "before": before, "after": after}


def _sample_at(product: Fraction | int, more: int = 0) -> Any:
    """Points with lr·L = product, or above it."""

    def sample(random: Random) -> dict[str, Any]:
        values = _sample(random)
        excess = Fraction(random.randint(1, 99), 10) if more else 0
        x = values["x"] if values["x"] else Fraction(1)
        return values | {"x": x, "lr": (product + excess) / values["smoothness"]}

    return sample


def _sample_stationary(random: Random) -> dict[str, Any]:
    values = _sample(random)
    return values | {"lr": values["lr"] + Fraction(1, 100), "g": random.choice([Fraction(0), values["g"]])}


def _sample_windows(random: Random) -> dict[str, Any]:
    """allowed is rational: tolerance and z·se are two sides of a right-angled triangle."""
    scale, window = Fraction(random.randint(1, 50), 100), random.randint(2, 200)
    tolerance, noise, allowed = 3 * scale, 4 * scale, 5 * scale
    z = Fraction(random.randint(1, 12))
    variances = noise * noise * window / (z * z)
    part, early = Fraction(random.randint(0, 10), 10), Fraction(random.randint(100, 800), 100)
    return {"window": window, "z": z, "tolerance": tolerance, "allowed": allowed, "early_variance": variances * part,
            "late_variance": variances * (1 - part), "early_mean": early,
            "late_mean": early + allowed * Fraction(random.randint(-20, 20), 10)}  # fmt: skip


def _sample_losses(random: Random) -> dict[str, Any]:
    return {name: Fraction(random.randint(0, 800), 100) for name in "abcd"}


def _agrees_with_statistics(losses: list[float], mean: Any, variance: Any) -> bool:
    """Against the standard library's exact mean and variance, to the rounding of a few hundred additions."""
    exact = [Fraction(loss) for loss in losses]
    scale = max(1.0, *(abs(loss) for loss in losses))
    near = abs(mean(losses) - float(statistics.mean(exact))) <= 1e-12 * scale
    return bool(near and abs(variance(losses) - float(statistics.variance(exact))) <= 1e-11 * scale * scale)


def _population(losses: list[float], ops: Ops = FLOAT) -> float:
    return statistics.pvariance(losses)


def observe(
    losses: list[float], mean: Any = descent.window_mean, variance: Any = descent.window_variance
) -> dict[str, float]:
    """What the guard looks at: the losses of two adjacent windows, the earlier half first."""
    half = len(losses) // 2
    early, late = losses[:half], losses[half:]
    return {"early_mean": mean(early), "early_variance": variance(early), "late_mean": mean(late),
            "late_variance": variance(late)}  # fmt: skip


def _noise(value: tuple[int, float, float]) -> list[float]:
    """Two windows of Gaussian noise around 2.5 with this deviation and slope per step, the same for a seed."""
    seed, deviation, slope = value
    random = Random(seed)
    return [2.5 + slope * k + random.gauss(0, deviation) for k in range(2 * DEFAULT.window)]


def _quiet(value: tuple[int, float, float], distance: Any) -> bool:
    return bool(distance(observe(_noise(value)), DEFAULT) >= 0)


def _without_noise(values: Mapping[str, Any], windows: Windows, ops: Ops = FLOAT) -> Number:
    return margin(values, Windows(windows.window, 1.0, 0.0), ops)


_STEP, _BOUND, _WORTH = descent.gradient_step, descent.smooth_bound, descent.guaranteed_descent
_PLANE = {"x": "real", "y": "real", "smoothness": "real", "lr": "real"}

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-1.descent", "on an L-smooth loss of one coordinate a step of rate 0 <= lr <= 1/L lowers the loss by at least "
            "lr/2 g^2", (_STEP, _BOUND, _WORTH), given=_rate, show=_descends, sample=_sample,
            variables=dict.fromkeys(("x", "g", "lr", "smoothness", "before", "after"), "real")),
    Identity("INV-1.remainder", "in up to four coordinates the smooth bound after a step is f - lr/2 |g|^2 - "
             "lr/2 (1 - L lr) |g|^2, so that the same holds there", (_STEP,), show=_remainder),
    Formula("INV-1.bound", "the smooth bound is f + g·move + L/2 |move|^2 and the descent lr/2 |g|^2, in three coordinates",
            (_BOUND, _WORTH), show=_bound_is, sample=_sample,
            variables=dict.fromkeys(("x", "y", "w", "g", "h", "k", "lr", "smoothness", "before"), "real")),
    Formula("INV-1.attained", "at lr = 1/L a quadratic is lowered by exactly lr/2 |g|^2: the bound cannot be improved",
            (_STEP, _WORTH), variables=_PLANE, given=lambda v: {"lr = 1/L": v.lr * v.smoothness == 1}, show=_attained,
            sample=_sample_at(1)),
    Formula("INV-1.sharp", "above lr = 2/L a step raises a quadratic, from every point but its minimum", (_STEP,),
            variables=_PLANE, show=_rises, sample=_sample_at(2, more=1),
            given=lambda v: {"L > 0": v.smoothness > 0, "lr > 2/L": v.lr * v.smoothness > 2, "not at it": v.x != 0}),
    Formula("INV-1.any-rate", "a step along the gradient never raises a quadratic, whatever its rate", (_STEP,),
            variables=_PLANE, given=lambda v: {"lr >= 0": v.lr >= 0, "L > 0": v.smoothness > 0}, show=_any_rate_descends,
            sample=_sample_at(0), must_fail=True),
    Formula("INV-1.stationary", "where no step lowers the loss, at a minimum, the gradient is zero: descent says so itself",
            (_WORTH,), variables={"before": "real", "g": "real", "lr": "real"}, given=lambda v: {"lr > 0": v.lr > 0},
            show=_stationary, sample=_sample_stationary),
    Formula("INV-1.seed-axiom", "the squared gradient is positive everywhere, as the seed's axiom has it", (seed_slope,),
            variables={"t": "real", "smoothness": "real", "minimum": "real"}, show=_never_stationary, sample=_sample,
            given=lambda v: {"L > 0": v.smoothness > 0}, must_fail=True),
    Formula("INV-1.statistics", "mean and sample variance, for windows of two, three and four losses, over the reals",
            (descent.window_mean, descent.window_variance), variables=dict.fromkeys("abcd", "real"), show=_statistics,
            sample=_sample_losses),
    Property("INV-1.float-statistics", "mean and variance in float64 are the exact ones of the standard library to 1e-11",
             (descent.window_mean, descent.window_variance), holds=_agrees_with_statistics, examples=300,
             strategy=lambda st: st.lists(st.floats(-20, 20), min_size=2, max_size=120),
             rivals={"variance over n": (descent.window_mean, _population)}),
    Formula("INV-1.margin", "the guard's margin is z^2 (variances)/window + tolerance^2 - rise |rise|",
            (margin, descent.rise_margin),
            variables=dict.fromkeys((*OBSERVED, "window", "z", "tolerance"), "real"), show=_margin_is, sample=_sample_windows,
            given=lambda v: {"window > 0": v.window > 0}),
    Formula("INV-1.accepts", "the guard accepts iff the rise is at most the root of z^2 standard errors^2 + tolerance^2",
            (margin,), variables=dict.fromkeys((*OBSERVED, "window", "z", "tolerance", "allowed"), "real"), given=_allowed,
            show=_means, sample=_sample_windows),
    Property("INV-1.noise", "independent noise around a level or a falling line is never called a rise", (margin,), holds=_quiet,
             strategy=lambda st: st.tuples(st.integers(0, 2**32), st.floats(0, 2), st.floats(-0.05, 0)),
             rivals={"one standard error": (_without_noise,)}, examples=800),
)  # fmt: skip


def bounds(windows: Windows) -> tuple[Bound, ...]:
    """The comparison as cited."""
    return (
        Bound("window", "step losses in each of two adjacent windows", str(windows.window)),
        Bound("z", "standard errors of the difference of the means", f"{windows.z:g}"),
        Bound("tolerance", "bits per byte besides, in quadrature", f"{windows.tolerance:g}"),
        Bound("rate", "0 <= lr <= 1/L for a guaranteed descent, below 2/L for any", "L is not known of a network"),
    )


def required(windows: Windows) -> str:
    """The condition as one line."""
    return (
        f"mean loss of the last {windows.window} steps at most that of the {windows.window} before + "
        f"sqrt(({windows.z:g} standard errors)^2 + {windows.tolerance:g}^2) (statistical)"
    )


def _values(early: float, late: float, variance: float = 0.02) -> dict[str, Any]:
    return {"early_mean": early, "early_variance": variance, "late_mean": late, "late_variance": variance}


_EDGE = math.sqrt(36 * 0.04 / 60 + 0.0025)

INVARIANT = Invariant(
    id="INV-1",
    slug="descent",
    statement="The mean loss of a window of steps is not above that of the window before it by more than noise explains.",
    why="A rate that jumps or weights that are damaged raise the loss long before anything is infinite.",
    unit="(bits per byte)^2",
    sources=("the seed's INV-1, corrected", "Nesterov 2004, 1.2.3", "Welch 1947"),
    limits=(
        "STATISTICAL: a healthy run may be called rising, with a small chance that nothing here bounds for dependent losses.",
        "The theorem is about full gradients of a smooth loss; AdamW on batches is neither, and its L is not known.",
        "A rise slower than the noise of two windows is not seen, nor damage that heals within one window.",
        "Training that is meant to change its data or its objective half-way raises the loss and would be stopped.",
    ),
    phases=(Phase.BEFORE_STEP, Phase.FINISH),
    quantities=(
        Quantity("early_mean", "earlier mean", "bits per byte", "the mean training loss of the earlier window"),
        Quantity("early_variance", "its variance", "", "the sample variance there"),
        Quantity("late_mean", "later mean", "bits per byte", "the mean training loss of the later window"),
        Quantity("late_variance", "its variance", "", "the sample variance there"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.one_of(
        st.tuples(st.floats(1, 8), st.floats(-1, 1), st.floats(0, 0.2)).map(lambda x: _values(x[0], x[0] + x[1], x[2])),
        st.tuples(st.floats(0, 10), st.floats(0, 10)).map(lambda x: _values(*x)),
    ),
    holds=(
        Witness(_values(2.5, 2.45), "a loss that falls"),
        Witness(_values(2.5, 2.55), "a rise within the noise"),
        Witness(_values(2.5, 2.5 + _EDGE - 1e-9), "just within"),
    ),
    violates=(
        Witness(_values(2.5, 2.5 + _EDGE + 1e-9), "just beyond"),
        Witness(_values(2.5, 3.4), "a rate that jumped"),
        Witness(_values(2.5, 2.56, 0.0), "a rise without noise"),
    ),
)
