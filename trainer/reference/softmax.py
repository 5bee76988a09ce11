"""Softmax with the maximum subtracted, under a mask or without, and the cross-entropy of its logarithm."""

from __future__ import annotations

import numpy as np

from karat.trainer.reference.arrays import Array, Indices, Mask, require_within


def softmax(x: Array) -> Array:
    """exp(x) / sum exp(x) over the last axis; no overflow, since the largest exponent is 0."""
    e = np.exp(x - x.max(-1, keepdims=True))
    p: Array = e / e.sum(-1, keepdims=True)
    return p


def masked_softmax(x: Array, mask: Mask) -> Array:
    """Softmax over the visible entries alone (mask True), exactly 0 elsewhere.

    The mask is applied before: exp(-inf) = 0. ValueError for a row that sees nothing (it has no softmax: 0/0), TypeError for a
    mask that is not boolean (an additive mask has its zeros where it lets through).
    """
    if mask.dtype != np.bool_:
        raise TypeError(f"a mask is boolean, True where a key is seen; got {mask.dtype}")
    blind = np.argwhere(~mask.any(-1))
    if len(blind):
        raise ValueError(f"the mask's row {tuple(int(i) for i in blind[0])} sees no key: each must see at least one")
    return softmax(np.where(mask, x, -np.inf))


def softmax_backward(dp: Array, p: Array) -> Array:
    """dx = p (dp - sum p dp), the sum over the last axis. A hidden entry has p = 0, so its gradient is exactly 0."""
    dx: Array = p * (dp - (p * dp).sum(-1, keepdims=True))
    return dx


def log_softmax(x: Array) -> Array:
    """x - ln sum exp(x), with the maximum subtracted first."""
    shifted = x - x.max(-1, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return y


def cross_entropy(logits_RV: Array, targets_R: Indices) -> Array:
    """-mean of log_softmax(logits)[target] over the rows, in nats, 0-dim. ValueError for a target outside the vocabulary."""
    require_within(targets_R, logits_RV.shape[-1], "targets")
    return np.asarray(-log_softmax(logits_RV)[np.arange(len(targets_R)), targets_R].mean())


def cross_entropy_backward(dloss: Array, logits_RV: Array, targets_R: Indices) -> Array:
    """dloss (softmax - onehot) / R."""
    difference = softmax(logits_RV)
    difference[np.arange(len(targets_R)), targets_R] -= 1
    dlogits: Array = dloss * difference / len(targets_R)
    return dlogits
