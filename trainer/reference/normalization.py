"""LayerNorm and RMSNorm over the last axis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from karat.trainer.reference.arrays import Array, rows

EPSILON = 1e-5
"""What is added to the variance, or to the mean square."""


class NormGradient(NamedTuple):
    """By the input (..., d), the gain (d) and, for LayerNorm, the bias (d)."""

    x: Array
    gain: Array
    bias: Array


def standardized(x: Array, epsilon: float) -> tuple[Array, Array]:
    """(x - mean) / s and 1 / s, with s = sqrt(variance + epsilon); the variance is over d, not d - 1."""
    centred = x - x.mean(-1, keepdims=True)
    inverse: Array = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def layer_norm(x: Array, gain: Array, bias: Array | None = None, epsilon: float = EPSILON) -> Array:
    """gain (x - mean) / sqrt(variance + epsilon) + bias, (..., d) -> (..., d)."""
    y = standardized(x, epsilon)[0] * gain
    return y if bias is None else y + bias


def layer_norm_backward(dy: Array, x: Array, gain: Array, epsilon: float = EPSILON) -> NormGradient:
    """With n the standardized x and g = gain dy: dx = (g - mean(g) - n mean(g n)) / s.

    The first mean is what the subtracted mean gives back, the second what the division by s does.
    """
    n, inverse = standardized(x, epsilon)
    g = dy * gain
    dx = inverse * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
    return NormGradient(dx, rows(dy * n).sum(0), rows(dy).sum(0))


def rms_norm(x: Array, gain: Array, epsilon: float = EPSILON) -> Array:
    """gain x / sqrt(mean(x^2) + epsilon), (..., d) -> (..., d)."""
    y: Array = gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return y


def rms_norm_backward(dy: Array, x: Array, gain: Array, epsilon: float = EPSILON) -> NormGradient:
    """With r = sqrt(mean(x^2) + epsilon), n = x / r and g = gain dy: dx = (g - n mean(g n)) / r.

    The gradient by a bias is zero: there is none.
    """
    inverse = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    n, g = x * inverse, dy * gain
    dx = inverse * (g - n * (g * n).mean(-1, keepdims=True))
    return NormGradient(dx, rows(dy * n).sum(0), np.zeros_like(gain))
