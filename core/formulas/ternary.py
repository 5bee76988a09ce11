"""Ternary weights and 8-bit activations: three values times a group's scale, integers times a row's scale.

A group of 128 weights of one row shares the scale s = max(mean |w|, 1e-8); a weight is the nearest of -s, 0, s. A row
of activations shares absmax / 127. A product of a group is a sum of at most 128 integers of at most 127, so it is exact
in 16-bit integers, in int32 and in float32. Source: BitNet b1.58, Ma et al. 2024, arXiv 2402.17764, with its scale per
tensor replaced by one per group, as the seed's trainer has it.
"""

from __future__ import annotations

from collections.abc import Iterable

from karat.core.ops import FLOAT, Number, Ops

GROUP = 128
"""Weights that share a scale, neighbours in a row."""
LEVELS = 127
"""The largest integer that stands for an activation."""
LEAST = 1e-8
"""The least scale and the least absmax: a group or row of zeros stays zero."""


def trit(weight: Number, scale: Number, ops: Ops = FLOAT) -> Number:
    """-1, 0 or 1: the one whose multiple of scale > 0 is nearest to the weight; 0 halfway, and for NaN.

    The weight is doubled, not the scale halved: that is exact for every float, subnormal ones too.
    """
    twice = weight + weight
    one, zero = ops.constant(1.0, weight), ops.constant(0.0, weight)
    return ops.where(twice > scale, one, ops.where(twice < -scale, -one, zero))


def group_sum(codes: Iterable[Number], trits: Iterable[Number], ops: Ops = FLOAT) -> Number:
    """The product of a group of activations and one of weights before their scales: an integer."""
    return ops.sum(code * weight for code, weight in zip(codes, trits, strict=True))


def largest_sum(terms: Number) -> Number:
    """What no sum of so many products of a code and a trit exceeds, in whatever order they are added."""
    return terms * LEVELS
