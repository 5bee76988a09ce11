"""Squared ReLU, GELU by the exact error function, SiLU and the gated unit made of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from karat.trainer.reference.arrays import Array

_ERF = np.vectorize(math.erf, otypes=[np.float64])


class GateGradient(NamedTuple):
    """By the gate and by the values that it lets through."""

    gate: Array
    up: Array


def squared_relu(x: Array) -> Array:
    """max(x, 0)^2. So et al. 2021, Primer."""
    y: Array = np.maximum(x, 0) ** 2
    return y


def squared_relu_backward(dy: Array, x: Array) -> Array:
    """2 max(x, 0) dy; it is continuous, and 0 at 0."""
    dx: Array = 2 * np.maximum(x, 0) * dy
    return dx


def normal_cdf(x: Array) -> Array:
    """(1 + erf(x / sqrt 2)) / 2, with the error function of the C library: no tanh, no polynomial."""
    y: Array = (1 + _ERF(x / math.sqrt(2))) / 2
    return y


def gelu(x: Array) -> Array:
    """x P(N <= x) for a standard normal N. Hendrycks and Gimpel 2016."""
    return x * normal_cdf(x)


def gelu_backward(dy: Array, x: Array) -> Array:
    """(P(N <= x) + x density(x)) dy."""
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    dx: Array = (normal_cdf(x) + x * density) * dy
    return dx


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); only exponentials of what is at most 0 are taken."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) up, where silu(x) = x sigmoid(x). Shazeer 2020."""
    return gate * sigmoid(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> GateGradient:
    """silu'(x) = s + x s (1 - s) with s = sigmoid(x)."""
    s = sigmoid(gate)
    return GateGradient(gate=dy * up * (s + gate * s * (1 - s)), up=dy * gate * s)
