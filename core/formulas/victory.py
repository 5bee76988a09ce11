"""The victory gate: is the mean of three runs below a target, by Student's one-sided one-sample t-test, exactly?

With three runs Student's t has two degrees of freedom, and its distribution function is elementary:
F(t) = 1/2 + t / (2 sqrt(2 + t^2)). So `p < alpha` can be decided without a square root, on rationals: with
`lead` = 3 (target - mean) and `scatter` = 6 s^2 (s^2 the sample variance) it says
4 alpha (1 - alpha) lead^2 > (1 - 2 alpha)^2 scatter and lead > 0. For alpha = 1/100: 0.0396 lead^2 > 0.9604 scatter.
Unit of runs and target: bits per byte. Source: Student 1908; the distribution function by integrating the density.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from karat.core.ops import FLOAT, Number, Ops

HALF = Fraction(1, 2)

NO_DISTANCE = -1
"""The margin where no distance says why the gate is not met: three equal runs, or p equal to alpha."""


def lead(runs: Sequence[Number], target: Number) -> Number:
    """3 (target - mean) of three runs, in bits per byte: positive when their mean is below the target."""
    a, b, c = runs
    return 3 * target - (a + b + c)


def scatter(runs: Sequence[Number]) -> Number:
    """6 s^2 with s^2 the sample variance of three runs, in (bits per byte)^2: zero iff all three are equal."""
    a, b, c = runs
    return (a - b) * (a - b) + (b - c) * (b - c) + (c - a) * (c - a)


def lower_tail(t: Number, scale: Number) -> Number:
    """P(T <= t) of Student's t with two degrees of freedom, given scale = 1 / sqrt(2 + t^2)."""
    return (1 + t * scale) * HALF


def significance(ahead: Number, spread: Number, alpha: Number, ops: Ops = FLOAT) -> Number:
    """4 alpha (1 - alpha) ahead |ahead| - (1 - 2 alpha)^2 spread: positive iff p < alpha, where spread > 0.

    ahead: a `lead`; spread: a `scatter`; 0 < alpha < 1/2. Unit: (bits per byte)^2.
    """
    doubt = 1 - 2 * alpha
    return 4 * alpha * (1 - alpha) * ahead * ops.absolute(ahead) - doubt * doubt * spread


def gate_margin(runs: Sequence[Number], target: Number, alpha: Number, ops: Ops = FLOAT) -> Number:
    """The significance of three runs, or NO_DISTANCE where they do not differ or p equals alpha: >= 0 iff the gate is met."""
    spread = scatter(runs)
    distance = significance(lead(runs, target), spread, alpha, ops)
    return ops.where((spread > 0) & (distance != 0), distance, NO_DISTANCE)
