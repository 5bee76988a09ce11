"""Rotary positions: neighbouring pairs of coordinates, (2i, 2i + 1), are turned by position times frequency."""

from __future__ import annotations

import numpy as np

from karat.trainer.reference.arrays import Array


def rotary_table(length: int, head_dim: int, theta: float) -> Array:
    """(T, K / 2, 2): cosine and sine of position theta^(-2i / K). Su et al. 2021."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.outer(np.arange(length), frequency)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def rotate(x: Array, table_TK2: Array) -> Array:
    """(..., T, K) -> (..., T, K): the pair (a, b) becomes (a cos - b sin, a sin + b cos)."""
    cosine, sine = table_TK2[..., 0], table_TK2[..., 1]
    a, b = x[..., 0::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., 0::2] = a * cosine - b * sine
    y[..., 1::2] = a * sine + b * cosine
    return y


def rotate_backward(dy: Array, table_TK2: Array) -> Array:
    """The rotation's transpose, which is the rotation by the opposite angle."""
    cosine, sine = table_TK2[..., 0], table_TK2[..., 1]
    return rotate(dy, np.stack([cosine, -sine], axis=-1))
