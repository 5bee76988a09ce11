"""Descent: what a gradient step is worth on a smooth loss, and whether the noisy losses of a run have risen.

On a loss f with f(y) <= f(x) + g·(y - x) + L/2 |y - x|^2 (L-smooth, g the gradient at x) a step y = x - lr g with
0 <= lr <= 1/L lowers it by at least lr/2 |g|^2. That is a theorem about full gradients. The losses of single batches
are noisy: for them two adjacent windows are compared, as in Welch's test, without a square root.
Source: Nesterov 2004, Introductory Lectures on Convex Optimization, 1.2.3; Welch 1947.
"""

from __future__ import annotations

from collections.abc import Sequence

from karat.core.ops import FLOAT, Number, Ops


def gradient_step(point: Sequence[Number], gradient: Sequence[Number], lr: Number) -> list[Number]:
    """point - lr · gradient, coordinate by coordinate."""
    return [x - lr * g for x, g in zip(point, gradient, strict=True)]


def smooth_bound(
    value: Number, gradient: Sequence[Number], move: Sequence[Number], smoothness: Number, ops: Ops = FLOAT
) -> Number:
    """f(x) + g·move + L/2 |move|^2: the most that an L-smooth loss can be after the move, by its definition."""
    along = ops.sum(g * m for g, m in zip(gradient, move, strict=True))
    return value + along + smoothness * ops.sum(m * m for m in move) / 2


def guaranteed_descent(gradient: Sequence[Number], lr: Number, ops: Ops = FLOAT) -> Number:
    """lr/2 |g|^2: how much a step of rate 0 <= lr <= 1/L lowers an L-smooth loss, at least."""
    return lr * ops.sum(g * g for g in gradient) / 2


def window_mean(losses: Sequence[Number], ops: Ops = FLOAT) -> Number:
    """The mean of a window of losses; at least one."""
    return ops.sum(losses) / len(losses)


def window_variance(losses: Sequence[Number], ops: Ops = FLOAT) -> Number:
    """The sample variance of a window of losses, over n - 1; at least two."""
    mean = window_mean(losses, ops)
    deviations = [loss - mean for loss in losses]
    return ops.sum(x * x for x in deviations) / (len(losses) - 1)


def rise_margin(
    early: tuple[Number, Number],
    late: tuple[Number, Number],
    window: Number,
    z: Number,
    tolerance: Number,
    ops: Ops = FLOAT,
) -> Number:
    """z^2 (variances)/window + tolerance^2 - rise |rise| for (mean, variance) of two windows and rise = late - early.

    >= 0 iff the later mean is above the earlier by at most the root of z^2 standard errors^2 + tolerance^2. Unit: that
    of the losses, squared.
    """
    rise = late[0] - early[0]
    return z * z * (early[1] + late[1]) / window + tolerance * tolerance - rise * ops.absolute(rise)
