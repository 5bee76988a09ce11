"""The embedding, and the head that is tied to it: one weight, read at both ends."""

from __future__ import annotations

import numpy as np

from karat.trainer.reference import linear
from karat.trainer.reference.arrays import Array, Indices, require_within, rows


def embed(tokens: Indices, weight_VD: Array) -> Array:
    """The rows of the weight that the tokens name, (...) -> (..., D). ValueError for a token outside the vocabulary."""
    require_within(tokens, len(weight_VD), "tokens")
    x: Array = weight_VD[tokens]
    return x


def embed_backward(dx: Array, tokens: Indices, weight_VD: Array) -> Array:
    """Each row's gradient is the sum over all places where its token stands (an assignment would keep the last alone)."""
    gradient = np.zeros_like(weight_VD)
    np.add.at(gradient, tokens.reshape(-1), rows(dx))
    return gradient


def tied_head(hidden: Array, weight_VD: Array) -> Array:
    """Logits hidden W^T, (..., D) -> (..., V), with the embedding's own weight."""
    return linear.linear(hidden, weight_VD)


def tied_head_backward(dlogits: Array, hidden: Array, weight_VD: Array) -> tuple[Array, Array]:
    """By the hidden state, and by the weight: the head's share, to which the embedding's is added."""
    gradient = linear.linear_backward(dlogits, hidden, weight_VD)
    return gradient.x, gradient.weight
