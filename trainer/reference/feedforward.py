"""The feed-forward sublayer: up, activation, down; SwiGLU has a gate beside up. No biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from karat.trainer.reference import activation, linear
from karat.trainer.reference.arrays import Array

Kind = Literal["relu2", "gelu", "swiglu"]


def feed_forward(x: Array, weights: Mapping[str, Array], kind: Kind) -> Array:
    """(..., D) -> (..., D) through the weights "up" (F, D), "down" (D, F) and, for swiglu, "gate" (F, D)."""
    return linear.linear(_hidden(x, weights, kind), weights["down"])


def feed_forward_backward(
    dy: Array, x: Array, weights: Mapping[str, Array], kind: Kind
) -> tuple[Array, dict[str, Array]]:
    """The gradients by x, and by each weight under its name."""
    down = linear.linear_backward(dy, _hidden(x, weights, kind), weights["down"])
    before = linear.linear(x, weights["up"])
    if kind == "swiglu":
        gate_before = linear.linear(x, weights["gate"])
        through = activation.swiglu_backward(down.x, gate_before, before)
        gate = linear.linear_backward(through.gate, x, weights["gate"])
        up = linear.linear_backward(through.up, x, weights["up"])
        return up.x + gate.x, {"gate": gate.weight, "up": up.weight, "down": down.weight}
    backward = activation.squared_relu_backward if kind == "relu2" else activation.gelu_backward
    up = linear.linear_backward(backward(down.x, before), x, weights["up"])
    return up.x, {"up": up.weight, "down": down.weight}


def _hidden(x: Array, weights: Mapping[str, Array], kind: Kind) -> Array:
    before = linear.linear(x, weights["up"])
    if kind == "swiglu":
        return activation.swiglu(linear.linear(x, weights["gate"]), before)
    return activation.squared_relu(before) if kind == "relu2" else activation.gelu(before)
