"""Limits: the four comparisons by which the guards of the RUN family judge a number, each as a signed distance.

A distance is in the unit of the number; it is not negative where the number is within its limit, ends included.
"""

from __future__ import annotations

from karat.core.ops import Number, Ops


def at_most(value: Number, bound: Number) -> Number:
    """bound - value: not negative iff value <= bound."""
    return bound - value


def at_least(value: Number, bound: Number) -> Number:
    """value - bound: not negative iff value >= bound."""
    return value - bound


def within(value: Number, low: Number, high: Number, ops: Ops) -> Number:
    """The distance to the nearer end: not negative iff low <= value <= high."""
    return ops.minimum(value - low, high - value)


def agrees(value: Number, declared: Number, tolerance: Number, ops: Ops) -> Number:
    """tolerance - |value - declared|: not negative iff the two differ by at most the tolerance."""
    return tolerance - ops.absolute(value - declared)
