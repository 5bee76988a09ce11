"""Successive halving: rungs, who survives a rung by rank, and the threshold rule with its safety certificate.

A trial is pruned when its loss at a rung is above a threshold. The rule is safe, that is, it never prunes a trial
that would have reached the target, iff target + gap <= threshold, where `gap` is how much a trial's loss may still
fall from a rung to its end. The gap is a fact about learning curves: it must be declared and watched; no identity of
constants supplies it. Unit of every loss: bits per byte. Source: Li et al. 2018 (ASHA), arXiv 1810.05934.
"""

from __future__ import annotations

from collections.abc import Sequence

from karat.core.ops import FLOAT, Number, Ops

ETA = 3
"""Reduction factor between rungs."""


def next_rung(rung: Number) -> Number:
    """The rung after this one."""
    return rung * ETA


def rung_steps(r0: int, total: int) -> tuple[int, ...]:
    """The rungs r0 · 3^k that lie before step `total`, rising; ValueError when r0 < 1."""
    if r0 < 1:
        raise ValueError(f"the first rung must be at least 1 step, got {r0}")
    steps = []
    rung = r0
    while rung < total:
        steps.append(rung)
        rung = next_rung(rung)
    return tuple(steps)


def rungs_due(rungs: Sequence[int], step: Number) -> list[int]:
    """Those of the rungs that have come by the time that `step` steps are done."""
    return [rung for rung in rungs if rung <= step]


def misplaced(rungs: Sequence[Number], due: Sequence[Number], ops: Ops = FLOAT) -> Number:
    """How far rungs are from those due: the largest |rung - due| and the difference in number; 0 iff they are equal."""
    worst: Number = abs(len(rungs) - len(due))
    for rung, wanted in zip(rungs, due, strict=False):
        worst = ops.maximum(worst, ops.absolute(rung - wanted))
    return worst


def keep(n: Number) -> Number:
    """How many of n trials survive a rung: a third, rounded down, but at least one."""
    return max(1, n // ETA)


def goes_before(loss: Number, place: Number, other: Number, other_place: Number) -> Number:
    """Whether a trial ranks before another: the lower loss first, NaN after every number, ties in the order of place."""
    if loss < other:
        return True
    if loss > other:
        return False
    if (loss == loss) != (other == other):  # one of them is NaN
        return loss == loss
    return place < other_place


def rank(losses: Sequence[Number], place: int) -> int:
    """How many trials go before the one at `place`: 0 for the best."""
    loss = losses[place]
    return sum(1 for other, it in enumerate(losses) if goes_before(it, other, loss, place))


def survivors(losses: Sequence[Number]) -> list[int]:
    """The places of the trials that survive a rung, rising: those whose rank is below keep(n)."""
    kept = keep(len(losses))
    return [place for place in range(len(losses)) if rank(losses, place) < kept]


def last_alive(trials: int, rungs: Sequence[Sequence[Number]]) -> list[int]:
    """The trials alive after every rung; rungs[r][t] is the loss of trial t at rung r, and only the alive ones are ranked."""
    alive = list(range(trials))
    for losses in rungs:
        alive = [alive[place] for place in survivors([losses[trial] for trial in alive])]
    return alive


def should_prune(loss: Number, threshold: Number) -> Number:
    """Whether a trial is pruned: its loss is not <= threshold. Written so that a NaN loss is pruned."""
    return not loss <= threshold


def certificate_margin(threshold: Number, target: Number, gap: Number) -> Number:
    """threshold - (target + gap), in bits per byte: the rule is safe iff this is >= 0."""
    return threshold - (target + gap)
