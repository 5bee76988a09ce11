"""A whole small transformer of the parts beside it: pre-norm, plain residual, tied head, next-token cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from karat.trainer.reference import attention, embedding, feedforward, normalization, rotary, softmax
from karat.trainer.reference.arrays import Array, Indices, rows

Weights = Mapping[str, Array]
"""By name: "embedding" (V, D), "positions" (context, D) where they are learned, "final_norm" (D), and for block i "blocks.i." and
one of "norm_attention", "norm_feed_forward" (D), "query", "key", "value", "out" (D, D), "up" (F, D),
"down" (D, F) and, for swiglu, "gate" (F, D)."""


@dataclass(frozen=True)
class Shape:
    """What a model is besides its weights."""

    n_layers: int
    n_heads: int
    norm: Literal["layer", "rms"] = "layer"
    positions: Literal["rope", "learned"] = "rope"
    activation: feedforward.Kind = "relu2"
    gain: float = 1.0
    theta: float = 1e4
    epsilon: float = normalization.EPSILON


@dataclass(frozen=True)
class Tape:
    """What the forward pass leaves for the backward: the residual stream before each block, and after the last."""

    tokens_BT: Indices
    targets_BT: Indices
    before_block: tuple[Array, ...]
    last_BTD: Array
    table_TK2: Array | None
    logits_BTV: Array


def of_block(weights: Weights, layer: int) -> dict[str, Array]:
    """The weights of one block, by their names inside it."""
    prefix = f"blocks.{layer}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def norm(x: Array, gain: Array, shape: Shape) -> Array:
    """The norm in front of a sublayer and of the head."""
    if shape.norm == "layer":
        return normalization.layer_norm(x, gain, None, shape.epsilon)
    return normalization.rms_norm(x, gain, shape.epsilon)


def norm_backward(dy: Array, x: Array, gain: Array, shape: Shape) -> normalization.NormGradient:
    """The gradient by x and by the gain; that by a bias is not used."""
    if shape.norm == "layer":
        return normalization.layer_norm_backward(dy, x, gain, shape.epsilon)
    return normalization.rms_norm_backward(dy, x, gain, shape.epsilon)


def after_attention(x_BTD: Array, block: Weights, shape: Shape, table_TK2: Array | None) -> Array:
    """x + attention(norm(x)), causal."""
    normed, mask = norm(x_BTD, block["norm_attention"], shape), attention.causal_mask(x_BTD.shape[1])
    return x_BTD + attention.multi_head(normed, block, shape.n_heads, shape.gain, table_TK2, mask)


def block_forward(x_BTD: Array, block: Weights, shape: Shape, table_TK2: Array | None) -> Array:
    """(B, T, D) -> (B, T, D): x + attention(norm(x)), then x + feed_forward(norm(x))."""
    middle = after_attention(x_BTD, block, shape, table_TK2)
    return middle + feedforward.feed_forward(norm(middle, block["norm_feed_forward"], shape), block, shape.activation)


def block_backward(
    dy_BTD: Array, x_BTD: Array, block: Weights, shape: Shape, table_TK2: Array | None
) -> tuple[Array, dict[str, Array]]:
    """By the block's input, and by each of its weights. A residual branch adds its gradient to the one that goes straight on."""
    middle = after_attention(x_BTD, block, shape, table_TK2)
    normed = norm(middle, block["norm_feed_forward"], shape)
    dnormed, by_feed_forward = feedforward.feed_forward_backward(dy_BTD, normed, block, shape.activation)
    second = norm_backward(dnormed, middle, block["norm_feed_forward"], shape)
    dmiddle = dy_BTD + second.x
    normed, mask = norm(x_BTD, block["norm_attention"], shape), attention.causal_mask(x_BTD.shape[1])
    dnormed, by_attention = attention.multi_head_backward(
        dmiddle, normed, block, shape.n_heads, shape.gain, table_TK2, mask
    )
    first = norm_backward(dnormed, x_BTD, block["norm_attention"], shape)
    by_attention.pop("gain")  # a constant of the shape, not a weight
    norms = {"norm_attention": first.gain, "norm_feed_forward": second.gain}
    return dmiddle + first.x, norms | by_attention | by_feed_forward


def logits(tokens_BT: Indices, weights: Weights, shape: Shape, table_TK2: Array | None = None) -> Array:
    """(B, T) -> (B, T, V). Without a table the rotary one is made in float64."""
    return forward(tokens_BT, np.zeros_like(tokens_BT), weights, shape, table_TK2)[1].logits_BTV


def forward(
    tokens_BT: Indices, targets_BT: Indices, weights: Weights, shape: Shape, table_TK2: Array | None = None
) -> tuple[Array, Tape]:
    """The mean cross-entropy in nats per token, 0-dim, and what the backward pass needs."""
    length, width = tokens_BT.shape[1], weights["embedding"].shape[1]
    x = embedding.embed(tokens_BT, weights["embedding"])
    if shape.positions == "learned":
        if length > len(weights["positions"]):
            raise ValueError(f"{length} tokens, and {len(weights['positions'])} learned positions: no more can be read")
        x, table = x + weights["positions"][:length], None
    else:
        table = rotary.rotary_table(length, width // shape.n_heads, shape.theta) if table_TK2 is None else table_TK2
    before = []
    for layer in range(shape.n_layers):
        before.append(x)
        x = block_forward(x, of_block(weights, layer), shape, table)
    logits_BTV = embedding.tied_head(norm(x, weights["final_norm"], shape), weights["embedding"])
    loss = softmax.cross_entropy(rows(logits_BTV), targets_BT.reshape(-1))
    return loss, Tape(tokens_BT, targets_BT, tuple(before), x, table, logits_BTV)


def backward(tape: Tape, weights: Weights, shape: Shape, dloss: Array | float = 1.0) -> dict[str, Array]:
    """The gradient of dloss times the loss by every weight, under the weights' names."""
    flat = softmax.cross_entropy_backward(np.asarray(dloss), rows(tape.logits_BTV), tape.targets_BT.reshape(-1))
    hidden = norm(tape.last_BTD, weights["final_norm"], shape)
    dhidden, by_head = embedding.tied_head_backward(flat.reshape(tape.logits_BTV.shape), hidden, weights["embedding"])
    final = norm_backward(dhidden, tape.last_BTD, weights["final_norm"], shape)
    dx, gradients = final.x, {"final_norm": final.gain}
    for layer in reversed(range(shape.n_layers)):
        x, block = tape.before_block[layer], of_block(weights, layer)
        dx, by_block = block_backward(dx, x, block, shape, tape.table_TK2)
        gradients |= {f"blocks.{layer}.{name}": gradient for name, gradient in by_block.items()}
    if shape.positions == "learned":
        gradients["positions"] = np.zeros_like(weights["positions"])
        gradients["positions"][: dx.shape[1]] = dx.sum(0)
    gradients["embedding"] = by_head + embedding.embed_backward(dx, tape.tokens_BT, weights["embedding"])
    return gradients
