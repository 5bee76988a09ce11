"""Attention scores with a declared gain: score = gain · q.k / sqrt(head_dim), and whether q and k matter to it.

A score depends on q and on k exactly when some second difference s(q1,k1) - s(q1,k2) - s(q2,k1) + s(q2,k2) is not
zero. With one position there is none: a softmax over one score is 1 whatever q and k are.
Source: scaled dot-product attention, Vaswani et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from karat.core.golden import PHI
from karat.core.ops import FLOAT, Number, Ops


def golden_gain(power: int) -> float:
    """phi^power correctly rounded to a double."""
    return float(PHI**power)


def score_scale(gain: Number, root: Number) -> Number:
    """What q.k is multiplied by: gain / root, where root = sqrt(head_dim) > 0."""
    return gain / root


def score(q: Sequence[Number], k: Sequence[Number], scale: Number, ops: Ops = FLOAT) -> Number:
    """scale · q.k; the coordinates may be arrays, and are multiplied element by element."""
    return scale * ops.sum(a * b for a, b in zip(q, k, strict=True))


def interaction(near: Number, right: Number, below: Number, across: Number) -> Number:
    """The second difference of four scores s(q1,k1), s(q1,k2), s(q2,k1), s(q2,k2): 0 where q or k does not matter."""
    return (near - right) - (below - across)
