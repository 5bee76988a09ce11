"""Central differences: the gradient of the reference's own forward, without any formula for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from karat.trainer.gradcheck.compare import DIFFERENCES, LIMITS, Comparison, Result, compared
from karat.trainer.reference.arrays import Array

STEP, WIDE_STEP = 1e-6, 1e-3
"""Of the plain difference (f(x + h) - f(x - h)) / 2h, and of the five-point one, asked where the first is not near enough.

The plain one is wrong by about h^2 f'''/6 + 2^-53 |f| / h = 1e-10, and by h beside the kink of ReLU^2; where a gradient happens
to be nearly 0, that is much of it. The five-point one is wrong by h^4 f'''''/30 + 2^-53 |f| / h = 1e-12, but needs a smooth f.
No wrong gradient is near to either.
"""
ELEMENTWISE = 24
"""Tensors of at most so many elements are differentiated element by element, larger ones in DIRECTIONS directions."""
DIRECTIONS = 6
"""Random vectors of +1 and -1. A gradient's error is orthogonal to all of them by no chance worth naming."""

Weighted = Callable[[Array, Array], float]
"""(v, w): what moving the tensor by w instead of v takes from the weighted sum of the output, summed after subtracting."""


def by_differences(
    difference: Weighted, value: Array, gradient: Array, scale: float, random: np.random.Generator
) -> Comparison:
    """The comparison of a gradient with the differences of what it is the gradient of."""
    if value.size <= ELEMENTWISE:
        directions = np.eye(value.size).reshape(value.size, *value.shape)
    else:
        directions = random.choice([-1.0, 1.0], size=(DIRECTIONS, *value.shape))
    expected = np.array([float((gradient * v).sum()) for v in directions])

    def against(estimate: Callable[[Weighted, Array], float]) -> Comparison:
        found = np.array([estimate(difference, v) for v in directions])
        return compared(DIFFERENCES, expected, found, scale, LIMITS[DIFFERENCES])

    first = against(_plain)
    if first.result is not Result.FAILED:
        return first
    second = against(_five_point)
    return second if second.result is Result.HELD else first


def _plain(difference: Weighted, v: Array) -> float:
    return difference(STEP * v, -STEP * v) / (2 * STEP)


def _five_point(difference: Weighted, v: Array) -> float:
    h = WIDE_STEP
    return (8 * difference(h * v, -h * v) - difference(2 * h * v, -2 * h * v)) / (12 * h)
