"""y = x W^T + b."""

from __future__ import annotations

from typing import NamedTuple

from karat.trainer.reference.arrays import Array, rows


class LinearGradient(NamedTuple):
    """By the input (..., d_in), the weight (d_out, d_in) and the bias (d_out)."""

    x: Array
    weight: Array
    bias: Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b: (..., d_in) -> (..., d_out), weight (d_out, d_in) as torch keeps it, bias (d_out) or none."""
    y: Array = x @ weight.T
    return y if bias is None else y + bias


def linear_backward(dy: Array, x: Array, weight: Array) -> LinearGradient:
    """dx = dy W, dW = dy^T x, db = the sum of dy, the last two over all rows."""
    return LinearGradient(x=dy @ weight, weight=rows(dy).T @ rows(x), bias=rows(dy).sum(0))
