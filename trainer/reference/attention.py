"""Attention under a boolean mask, and the multi-head layer with rotary positions around it.

scores = gain q.k / sqrt(K). A query whose mask lets one key through has a softmax of 1 whatever q, k, gain and position are:
at sequence length one their gradients are exactly zero, and nothing about them can be checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from karat.trainer.reference import linear, rotary, softmax
from karat.trainer.reference.arrays import Array, Mask


class AttendGradient(NamedTuple):
    """By q, k and v, each (..., T, K), and by the gain, 0-dim."""

    q: Array
    k: Array
    v: Array
    gain: Array


class Heads(NamedTuple):
    """q and k after the rotation, v: (B, H, T, K)."""

    q: Array
    k: Array
    v: Array


def causal_mask(length: int) -> Mask:
    """(T, T), True where the key (last axis) is not after the query."""
    return np.tri(length, dtype=np.bool_)


def score_scale(gain: float | Array, head_dim: int) -> Array:
    """What q.k is multiplied by: gain / sqrt(K)."""
    return np.asarray(gain / math.sqrt(head_dim))


def attend(q: Array, k: Array, v: Array, gain: float | Array, mask: Mask) -> tuple[Array, Array]:
    """The mixed values (..., T, K) and the probabilities (..., T, T). ValueError for a row of the mask without a key."""
    scores = score_scale(gain, q.shape[-1]) * (q @ k.swapaxes(-1, -2))
    p = softmax.masked_softmax(scores, np.broadcast_to(mask, scores.shape))
    return p @ v, p


def attend_backward(dy: Array, q: Array, k: Array, v: Array, gain: float | Array, p: Array) -> AttendGradient:
    """Through p v, the softmax, the scale and q k^T, in this order. The mask is in p: what is hidden has p = 0."""
    dscores = softmax.softmax_backward(dy @ v.swapaxes(-1, -2), p)
    scale = score_scale(gain, q.shape[-1])
    per_gain = score_scale(1.0, q.shape[-1]) * (q @ k.swapaxes(-1, -2))
    return AttendGradient(
        q=scale * (dscores @ k),
        k=scale * (dscores.swapaxes(-1, -2) @ q),
        v=p.swapaxes(-1, -2) @ dy,
        gain=np.asarray((dscores * per_gain).sum()),
    )


def split_heads(x_BTD: Array, heads: int) -> Array:
    """(B, T, D) -> (B, H, T, K): head h has the coordinates h K to (h + 1) K."""
    b, t, _ = x_BTD.shape
    return x_BTD.reshape(b, t, heads, -1).swapaxes(1, 2)


def join_heads(x_BHTK: Array) -> Array:
    """(B, H, T, K) -> (B, T, D), the inverse and the transpose of split_heads."""
    b, _, t, _ = x_BHTK.shape
    return x_BHTK.swapaxes(1, 2).reshape(b, t, -1)


def project(x_BTD: Array, weights: Mapping[str, Array], heads: int, table_TK2: Array | None) -> Heads:
    """q, k and v of every head; q and k turned by their position where there is a table (T, K / 2, 2)."""
    q, k, v = (split_heads(linear.linear(x_BTD, weights[name]), heads) for name in ("query", "key", "value"))
    return Heads(q, k, v) if table_TK2 is None else Heads(rotary.rotate(q, table_TK2), rotary.rotate(k, table_TK2), v)


def multi_head(
    x_BTD: Array, weights: Mapping[str, Array], heads: int, gain: float | Array, table_TK2: Array | None, mask: Mask
) -> Array:
    """(B, T, D) -> (B, T, D); the weights "query", "key", "value" and "out" are (D, D), there are no biases."""
    mixed, _ = attend(*project(x_BTD, weights, heads, table_TK2), gain, mask)
    return linear.linear(join_heads(mixed), weights["out"])


def multi_head_backward(
    dy_BTD: Array,
    x_BTD: Array,
    weights: Mapping[str, Array],
    heads: int,
    gain: float | Array,
    table_TK2: Array | None,
    mask: Mask,
) -> tuple[Array, dict[str, Array]]:
    """The gradients by x, and under their names by each weight and by "gain"."""
    q, k, v = project(x_BTD, weights, heads, table_TK2)
    mixed, p = attend(q, k, v, gain, mask)
    out = linear.linear_backward(dy_BTD, join_heads(mixed), weights["out"])
    inner = attend_backward(split_heads(out.x, heads), q, k, v, gain, p)
    before = {"query": inner.q, "key": inner.k, "value": inner.v}
    if table_TK2 is not None:
        before |= {name: rotary.rotate_backward(before[name], table_TK2) for name in ("query", "key")}
    dx, gradients = np.zeros_like(x_BTD), {"out": out.weight, "gain": inner.gain}
    for name, gradient in before.items():
        through = linear.linear_backward(join_heads(gradient), x_BTD, weights[name])
        dx, gradients[name] = dx + through.x, through.weight
    return dx, gradients
