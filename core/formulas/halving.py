"""Successive halving: rungs, how many survive a rung, and the threshold rule with its safety certificate.

A trial is pruned when its loss at a rung is above a threshold. The rule is safe, that is, it never prunes a trial
that would have reached the target, iff target + gap <= threshold, where `gap` is how much a trial's loss may still
fall from a rung to its end. The gap is a fact about learning curves: it must be declared and watched; no identity of
constants supplies it. Unit of every loss: bits per byte. Source: Li et al. 2018 (ASHA), arXiv 1810.05934.
"""

from __future__ import annotations

from karat.core.ops import Number

ETA = 3
"""Reduction factor between rungs."""


def rung_steps(r0: int, total: int) -> tuple[int, ...]:
    """The rungs r0 · 3^k that lie before step `total`, rising."""
    if r0 < 1:
        raise ValueError(f"the first rung must be at least 1 step, got {r0}")
    steps = []
    rung = r0
    while rung < total:
        steps.append(rung)
        rung *= ETA
    return tuple(steps)


def keep(n: Number) -> Number:
    """How many of n trials survive a rung: a third, rounded down, but at least one."""
    third = n // ETA
    if third < 1:
        return 1
    return third


def should_prune(loss: Number, threshold: Number) -> Number:
    """Whether a trial is pruned: its loss is not <= threshold. Written so that a NaN loss is pruned."""
    return not loss <= threshold


def certificate_margin(threshold: Number, target: Number, gap: Number) -> Number:
    """threshold - (target + gap), in bits per byte: the rule is safe iff this is >= 0."""
    return threshold - (target + gap)
