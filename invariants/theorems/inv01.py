"""INV-1 in Coq: the descent lemma in any number of coordinates, a whole run of it, its sharpness, and the margin's root."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import descent
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.invariants import inv01_descent as inv01

FILE = "INV01_descent"
OBSERVED = ("early_mean", "early_variance", "late_mean", "late_variance")


def _number(random: Random) -> Fraction:
    return Fraction(random.randint(-12, 12), random.randint(1, 6))


def _vector(random: Random, size: int) -> list[Fraction]:
    return [_number(random) for _ in range(size)]


def _sample_step(random: Random) -> dict[str, Any]:
    n = random.randint(1, 6)
    return {"point": _vector(random, n), "gradient": _vector(random, n), "lr": _number(random)}


def _sample_bound(random: Random) -> dict[str, Any]:
    n = random.randint(1, 6)
    return {"value": _number(random), "gradient": _vector(random, n), "move": _vector(random, n),
            "smoothness": _number(random)}  # fmt: skip


def _sample_descent(random: Random) -> dict[str, Any]:
    return {"gradient": _vector(random, random.randint(1, 6)), "lr": _number(random)}


def _sample_window(random: Random) -> dict[str, Any]:
    return {"losses": _vector(random, random.randint(2, 8))}


def _sample_rise(random: Random) -> dict[str, Any]:
    """Rises of both signs and none, and margins of 0: a right-angled triangle of tolerance, noise and rise."""
    early, z, window = _number(random), random.randint(1, 6), random.randint(1, 60)
    scale = Fraction(random.randint(1, 9), random.randint(1, 9))
    variances = 16 * scale * scale * window / (z * z)
    part = Fraction(random.randint(0, 4), 4)
    rise = random.choice([5 * scale, -5 * scale, Fraction(0), _number(random)])
    return {"early_mean": early, "early_variance": variances * part, "late_mean": early + rise,
            "late_variance": variances * (1 - part), "window": window, "z": z, "tolerance": 3 * scale}  # fmt: skip


def _rise(v: Mapping[str, Any]) -> Any:
    early, late = (v["early_mean"], v["early_variance"]), (v["late_mean"], v["late_variance"])
    return descent.rise_margin(early, late, v["window"], v["z"], v["tolerance"])


def _watched(v: Mapping[str, Any]) -> Any:
    return inv01.margin({name: v[name] for name in OBSERVED}, inv01.Windows(v["window"], v["z"], v["tolerance"]))


STEP = Counterpart(
    f"{FILE}.gradient_step", descent.gradient_step,
    f"map parts (vector (K := on_Q) (length {{point}}) ({FILE}.gradient_step (K := on_Q) "
    "(at_place (K := on_Q) {point}) (at_place (K := on_Q) {gradient}) {lr}))",
    _sample_step, run=lambda v: descent.gradient_step(**v),
)  # fmt: skip
BOUND = Counterpart(
    f"{FILE}.smooth_bound", descent.smooth_bound,
    f"parts ({FILE}.smooth_bound (K := on_Q) (length {{move}}) {{value}} "
    "(at_place (K := on_Q) {gradient}) (at_place (K := on_Q) {move}) {smoothness})",
    _sample_bound, run=lambda v: descent.smooth_bound(**v),
)  # fmt: skip
DESCENT = Counterpart(
    f"{FILE}.guaranteed_descent", descent.guaranteed_descent,
    f"parts ({FILE}.guaranteed_descent (K := on_Q) (length {{gradient}}) (at_place (K := on_Q) {{gradient}}) {{lr}})",
    _sample_descent, run=lambda v: descent.guaranteed_descent(**v),
)  # fmt: skip
MEAN = Counterpart(
    f"{FILE}.window_mean", descent.window_mean,
    f"parts ({FILE}.window_mean (K := on_Q) (length {{losses}}) (at_place (K := on_Q) {{losses}}))",
    _sample_window, run=lambda v: descent.window_mean(v["losses"]),
)  # fmt: skip
VARIANCE = Counterpart(
    f"{FILE}.window_variance", descent.window_variance,
    f"parts ({FILE}.window_variance (K := on_Q) (length {{losses}}) (at_place (K := on_Q) {{losses}}))",
    _sample_window, run=lambda v: descent.window_variance(v["losses"]),
)  # fmt: skip
RISE = Counterpart(
    f"{FILE}.rise_margin", descent.rise_margin,
    f"parts ({FILE}.rise_margin (K := on_Q) ({{early_mean}}, {{early_variance}}) ({{late_mean}}, {{late_variance}}) "
    "(of_Z {window}) (of_Z {z}) {tolerance})",
    _sample_rise, run=_rise,
)  # fmt: skip
MARGIN = Counterpart(
    f"{FILE}.margin", inv01.margin,
    f"parts ({FILE}.margin (K := on_Q) {{early_mean}} {{early_variance}} {{late_mean}} {{late_variance}} "
    "(of_Z {window}) (of_Z {z}) {tolerance})",
    _sample_rise, run=_watched,
)  # fmt: skip

_STEP = (descent.gradient_step, descent.smooth_bound)
_DESCENT = (*_STEP, descent.guaranteed_descent)
_WITNESS = (descent.gradient_step, descent.guaranteed_descent)
_ALL = (STEP, BOUND, DESCENT)
_VARIANCE = (descent.window_variance,)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-1.coq-any-rate", "on an L-smooth loss of n coordinates a step of any rate leaves at most "
            "f(x) - lr (1 - lr L/2) |g|^2, for every n", _STEP, file=FILE, theorem="step_at_any_rate",
            counterparts=(STEP, BOUND)),
    Theorem("INV-1.coq-descends", "the descent lemma: on an L-smooth loss of n coordinates a step with 0 <= lr and lr L <= 1 "
            "lowers it by at least lr/2 |g|^2, for every n", _DESCENT, file=FILE, theorem="step_descends", counterparts=_ALL),
    Theorem("INV-1.coq-quadratic", "L/2 |x|^2 with the gradient L x equals its own quadratic bound in n coordinates, so it is "
            "L-smooth", (descent.smooth_bound,), file=FILE, theorem="quadratic_is_its_bound", counterparts=(BOUND,)),
    Theorem("INV-1.coq-attained", "at lr L = 1 a step lowers the quadratic L/2 |x|^2 of n coordinates by lr/2 |g|^2 "
            "exactly: the lemma's descent is attained", _WITNESS, file=FILE, theorem="descent_is_attained",
            counterparts=(STEP, DESCENT)),
    Theorem("INV-1.coq-larger", "for L > 0, at every rate above 1/L the quadratic L/2 |x|^2 falls by less than lr/2 "
            "|g|^2, off its minimum x = 0", _WITNESS, file=FILE, theorem="larger_rates_descend_less",
            counterparts=(STEP, DESCENT)),
    Theorem("INV-1.coq-rises", "for L > 0, at every rate above 2/L a step raises the quadratic L/2 |x|^2, off its "
            "minimum x = 0", (descent.gradient_step,), file=FILE, theorem="step_rises_above_two_over_L",
            counterparts=(STEP,)),
    Theorem("INV-1.coq-run", "on an L-smooth loss, over any number of steps with 0 <= lr and lr L <= 1, the guaranteed "
            "descents add up to at most what the loss has fallen", _DESCENT, file=FILE, theorem="run_descends",
            counterparts=_ALL),
    Theorem("INV-1.coq-small-gradients", "on an L-smooth loss that is nowhere below m, one of the gradients of N >= 1 "
            "steps of one rate with 0 < lr and lr L <= 1 has |g|^2 <= 2 (f(x) - m) / (lr N)", _STEP, file=FILE,
            theorem="run_reaches_small_gradients", counterparts=(STEP, BOUND)),
    Theorem("INV-1.coq-mean", "the mean of a window of any length n >= 1 lies between any bounds of its losses",
            (descent.window_mean,), file=FILE, theorem="mean_between", counterparts=(MEAN,)),
    Theorem("INV-1.coq-variance", "the variance of a window of n >= 2 losses is (n S2 - S1^2) / (n (n - 1)), with S1 and S2 "
            "their sum and that of their squares", _VARIANCE, file=FILE, theorem="variance_is", counterparts=(VARIANCE,)),
    Theorem("INV-1.coq-variance-sign", "the variance of a window of two losses or more is not negative", _VARIANCE, file=FILE,
            theorem="variance_nonneg", counterparts=(VARIANCE,)),
    Theorem("INV-1.coq-margin", "for a window > 0 and variances whose sum is >= 0 the margin is >= 0 exactly where the "
            "rise is at most sqrt(z^2 (variances)/window + tolerance^2)", (descent.rise_margin, inv01.margin),
            file=FILE, theorem="margin_is_the_rise", counterparts=(RISE, MARGIN)),
)  # fmt: skip
