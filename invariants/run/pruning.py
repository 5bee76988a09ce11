"""A prune rule replayed on finished curves: whom it stops, when, and what is lost against the trial that ends best.

A rule is a function of what a trial has shown so far and of what all trials had shown by then; curves are of trials that
were not pruned. Losses: lower is better, NaN is worst. For the threshold rule the largest fall from a rung to the end is
measured, which is the gap that INV-2's certificate rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from karat.core.errors import KaratError
from karat.core.formulas.halving import certificate_margin, rank, should_prune, survivors
from karat.invariants.run.finding import Finding, decided
from karat.invariants.run.rule import Severity
from karat.invariants.run.run46_prune import RULE

Rule = Callable[[Sequence[float], Sequence[Sequence[float]]], bool]
"""rule(own losses so far, the losses so far of all trials, its own among them) -> whether the trial is stopped."""


@dataclass(frozen=True)
class Replay:
    """stopped: trial -> number of rows after which it was stopped. best: the trial that ends best; survivor: the one that
    ends best of those that were not stopped, None when there is none. lost: how much higher the survivor ends."""

    stopped: Mapping[str, int]
    best: str
    survivor: str | None
    lost: float


def replay(rule: Rule, curves: Mapping[str, Sequence[float]]) -> Replay:
    """Asks the rule of every trial after every row but its last, as if the trials ran side by side.

    curves: trial -> its losses, at the same steps for all, of any lengths. KaratError when there are none.
    """
    names = [name for name, curve in curves.items() if len(curve)]
    if not names:
        raise KaratError("there are no curves", required="a mapping of trials to their losses, at least one row each")
    stopped: dict[str, int] = {}
    for rows in range(1, max(len(curves[name]) for name in names)):
        so_far = [curves[name][:rows] for name in names]
        for name in names:
            if name not in stopped and rows < len(curves[name]) and rule(curves[name][:rows], so_far):
                stopped[name] = rows
    finals = [curves[name][-1] for name in names]
    order = sorted(range(len(names)), key=lambda place: rank(finals, place))
    left = [place for place in order if names[place] not in stopped]
    lost = finals[left[0]] - finals[order[0]] if left else math.inf
    return Replay(stopped, names[order[0]], names[left[0]] if left else None, lost)


def threshold_rule(threshold: float, rungs: Iterable[int]) -> Rule:
    """INV-2's rule: at a rung, after so many rows, a trial is stopped iff its loss is not <= threshold."""
    at = frozenset(rungs)
    return lambda own, others: len(own) in at and bool(should_prune(own[-1], threshold))


def halving_rule(rungs: Iterable[int]) -> Rule:
    """Successive halving by rank: at a rung only the best third of those that come so far goes on."""
    at = frozenset(rungs)

    def rule(own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        rows = len(own)
        if rows not in at:
            return False
        there = [curve for curve in others if len(curve) >= rows]
        losses = [curve[rows - 1] for curve in there]
        place = next(place for place, curve in enumerate(there) if curve is own or list(curve) == list(own))
        return place not in survivors(losses)

    return rule


def largest_gap(curves: Mapping[str, Sequence[float]], rungs: Iterable[int]) -> float:
    """The largest fall of a trial's loss from a rung to its end, not below 0: what the declared gap must be at least."""
    rows = [(curve, rung) for rung in rungs for curve in curves.values() if rung < len(curve)]
    return max((curve[rung - 1] - curve[-1] for curve, rung in rows), default=0.0)


def certified(
    curves: Mapping[str, Sequence[float]], rungs: Iterable[int], *, threshold: float, target: float, gap: float
) -> Finding:
    """RUN-46 of the threshold rule: what it loses on these curves, the gap they show, and INV-2's certificate.

    Violated when the best trial reaches the target and is stopped. A gap that is larger than declared is said, too.
    """
    rungs = tuple(rungs)
    found = replay(threshold_rule(threshold, rungs), curves)
    seen, margin = largest_gap(curves, rungs), certificate_margin(threshold, target, gap)
    reaches = curves[found.best][-1] <= target
    holds = not (found.best in found.stopped and reaches) and seen <= gap
    observed = (
        f"{len(found.stopped)} of {len(curves)} stopped, the best {'stopped' if found.best in found.stopped else 'kept'}; "
        f"largest gap {seen:.4g} where {gap:.4g} is declared; certificate {margin:+.4g}"
    )
    required = f"no trial that reaches {target:g} is stopped at threshold {threshold:g}, and no gap is above {gap:g}"
    return decided(RULE.id, Severity.FAIL, holds, observed, required, rows=len(curves), where=found.best)


def prune_rule(rule: Rule, curves: Mapping[str, Sequence[float]], lost: float = 0.0) -> Finding:
    """RUN-46: the rule loses at most `lost` of the final loss against the trial that ends best, on finished curves."""
    found = replay(rule, curves)
    margin = RULE.margin(found.lost, lost) if math.isfinite(found.lost) else -math.inf
    required = f"the best trial that survives ends within {lost:g} of the best of all"
    if found.best not in found.stopped:
        observed = f"{len(found.stopped)} of {len(curves)} stopped; {found.best}, which ends best, is kept"
    else:
        rows, curve = found.stopped[found.best], curves[found.best]
        left = f"{found.survivor} ends {found.lost:.4g} higher" if found.survivor is not None else "none survives"
        observed = (
            f"{found.best}, which ends best at {curve[-1]:.4g}, is stopped at row {rows} with {curve[rows - 1]:.4g}: "
            f"{left} ({len(found.stopped)} of {len(curves)} stopped)"
        )
    return decided(RULE.id, Severity.FAIL, margin >= 0, observed, required, rows=len(curves), where=found.best)
