"""The weights of the rows of all forwards of a step, and what became of the gradients between backward and step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run12_accumulation import RULE as ACCUMULATION
from karat.invariants.run.run49_reduction import RULE as REDUCTION
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain
from karat.invariants.runtime.watching.reading import Reading, read
from karat.invariants.runtime.watching.undivided import Undivided

NEAR = 0.01
UNEVEN = 1.5
"""Times as many targets as in another batch, padded to another length, from which on a mean of means is told."""
MOST_FORWARDS = 64
MOST_ANCHOR = 4096
LEAST_UNDECLARED = 4
"""Batches of a step that are taken for accumulated ones where that is not declared."""


@dataclass
class Share:
    """Of one forward: its rows, those that count, and the sum of their weights."""

    rows: int
    counted: int
    share: float
    samples: int = 0


@dataclass
class Weights:
    """Of the step under way. later: of the forwards after the first, None where one is no such cross-entropy."""

    later: list[Share | None] = field(default_factory=list)
    forwards: int = 0
    handles: list[Any] = field(default_factory=list)
    anchor: Tensor | None = None
    arrived: Tensor | None = None
    scale: float = 1.0
    safe: Callable[..., Any] = lambda hook: hook
    undivided: Undivided = field(default_factory=Undivided)
    usual: int = 0
    """Forwards of the step before."""
    arrivals: int = 0
    """Backward passes that reached the anchor."""

    def begin(self, loop: Loop, check: Check) -> None:
        """At the first forward of a step. With accumulation declared, one small gradient is followed to the step."""
        self.end()
        self.safe = partial(harmless, loop, check)
        self.scale = _scale(loop)
        several = loop.spec.accumulation or (self.usual if self.usual >= LEAST_UNDECLARED else 1)
        if several < 2 or not loop.dense(loop.step):
            return
        held = [h.parameter for h in loop.held[0] if h.parameter.requires_grad and h.parameter.is_leaf]
        small = [p for p in held if 0 < p.numel() <= MOST_ANCHOR]
        if small:
            self.anchor = min(small, key=Tensor.numel)
            if isinstance(self.anchor, torch.nn.Parameter):
                self.handles.append(self.anchor.register_post_accumulate_grad_hook(self.safe(self._added)))  # type: ignore[no-untyped-call]

    def _added(self, parameter: Tensor) -> None:
        self.arrivals += 1
        if parameter.grad is not None and plain(parameter.grad):
            self.arrived = parameter.grad.detach().clone()

    def follow(self, output: Any) -> None:
        """At a later forward of the same step."""
        self.forwards += 1
        if self.forwards > MOST_FORWARDS:
            return
        several = [t for _, t in leaves(output) if t.requires_grad and t.is_floating_point() and t.ndim > 1]
        if several:
            main = max(several, key=Tensor.numel)
            place = len(self.later)
            self.later.append(None)
            self.handles.append(main.register_hook(self.safe(partial(self._read, place, main.detach()))))  # type: ignore[no-untyped-call]

    def _read(self, place: int, output: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            reading = read(output, gradient.detach())
        if reading is not None and reading.uniform and reading.share is not None:
            self.later[place] = Share(reading.rows, reading.counted, reading.share, len(reading.targets))

    def rescaled(self) -> float | None:
        """By what the followed gradient was multiplied between the last backward and the step; None where not known."""
        if self.anchor is None or self.arrived is None or self.anchor.grad is None or not bool(self.arrived.any()):
            return None
        now, then = self.anchor.grad.detach().double().flatten(), self.arrived.double().flatten()
        if now.shape != then.shape:
            return None
        factor = float((now * then).sum() / (then * then).sum())
        same = float((now - factor * then).abs().max()) <= 1e-5 * float(now.abs().max())
        return factor if same else None

    def end(self) -> None:
        """After the step."""
        for handle in self.handles:
            handle.remove()
        self.undivided.end()
        self.usual, self.arrivals = self.forwards + 1 if self.forwards else self.usual, 0
        self.later, self.handles, self.forwards = [], [], 0
        self.anchor = self.arrived = None


def _scale(loop: Loop) -> float:
    scaler = loop.scaler
    return float(scaler.get_scale()) if scaler is not None and hasattr(scaler, "get_scale") else 1.0


def judged(loop: Loop, moment: Moment, reading: Reading, weights: Weights) -> None:
    """Judges the weights of a step whose forwards were all seen."""
    if not reading.uniform or reading.share is None:
        return
    first = Share(reading.rows, reading.counted, reading.share, len(reading.targets))
    if weights.forwards != len(weights.later) or any(share is None for share in weights.later):
        return
    shares = [first, *(share for share in weights.later if share is not None)]
    for share in shares:
        share.share /= weights.scale
    alike = weights.arrivals == len(shares) >= LEAST_UNDECLARED and len({s.rows for s in shares}) == 1
    if (loop.spec.accumulation or 1) > 1 or (loop.spec.accumulation is None and alike):
        _accumulated(loop, moment, shares, weights)
    if reading.half and loop.scaler is None:
        return  # the scale of the loss is not known
    if len(shares) == 1:
        _reduced(loop, moment, first, reading)
    else:
        accumulated = loop.spec.accumulation == len(shares) or weights.arrivals == len(shares) >= LEAST_UNDECLARED
        _of_unequal(loop, moment, shares, accumulated)


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= NEAR * wanted


def _accumulated(loop: Loop, moment: Moment, shares: list[Share], weights: Weights) -> None:
    """All batches of a step together are to weigh one."""
    count, total = len(shares), sum(s.share for s in shares)
    factor = weights.rescaled()
    if moment.index != 0 or factor is None or count < 2:
        return
    kept = _near(factor * weights.scale, 1.0)
    weight = total * factor * weights.scale
    if _near(weight, 1.0):
        loop.held_for(ACCUMULATION, moment.step)
        return
    if kept and _near(total, count):
        message = (
            f"the losses of {count} batches are added up undivided: the gradient is {count} times that of their mean"
        )
    elif kept and _near(total, 1 / count):
        message = f"the loss is divided by {count} twice: the gradient is a {count}th of that of the batches' mean"
    elif _near(total, 1.0) and _near(factor * weights.scale, 1 / count):
        message = (
            f"the losses are divided by {count} and so are the gradients, before the step: "
            f"they are a {count}th of those of the batches' mean"
        )
    else:
        return  # clipped, or a term with a factor of its own
    declared = loop.spec.accumulation is not None
    loop.judge(
        ACCUMULATION, moment.step, ACCUMULATION.margin(count * weight, count * (1 - NEAR), count * (1 + NEAR)),
        lambda: {
            "message": message, "where": "weights", "severity": Severity.FAIL if declared else Severity.WARN,
            "evidence": f"weights of the batches in the loss sum to {total:.4g}, gradients multiplied by {factor:.4g} after",
        },
    )  # fmt: skip


def judged_by_losses(loop: Loop, moment: Moment, weights: Weights) -> None:
    """Judges by the losses that were logged, where accumulation is declared and the outputs alone do not tell."""
    batches = loop.spec.accumulation or 1
    if batches < 2 or moment.index != 0 or moment.forwards != batches or loop.tallies[ACCUMULATION.id].violations:
        return
    factor = weights.rescaled()
    if factor is not None and _near(factor * weights.scale, 1.0):
        judged_undivided(loop, moment.step, weights.undivided.found(batches, weights.scale), batches)


def judged_undivided(loop: Loop, step: int, evidence: str, batches: int) -> None:
    """Judges what the logged losses tell of a step."""
    loop.judge(
        ACCUMULATION, step, ACCUMULATION.margin(batches * batches if evidence else batches, batches, batches),
        lambda: {
            "message": f"the losses of {batches} batches are added up undivided: the gradient is {batches} times that of "
            "their mean", "where": "weights", "severity": Severity.WARN, "evidence": evidence,
        },
    )  # fmt: skip


def _reduced(loop: Loop, moment: Moment, share: Share, reading: Reading) -> None:
    samples = reading.targets.shape[0]
    ignored = share.rows - share.counted
    if _near(share.share, 1.0):
        loop.held_for(REDUCTION, moment.step)
        return
    if share.counted >= 4 and _near(share.share, share.counted):
        message = (
            f"the loss is summed over its {share.counted} targets, not averaged: the gradient grows with the batch"
        )
    elif samples >= 8 and (_near(share.share, 1 / share.counted) or _near(share.share, 1 / samples)):
        message = (
            f"the mean loss is divided once more, by {round(1 / share.share)}: the gradient shrinks with the batch"
        )
    elif ignored >= 0.02 * share.rows and _near(share.share, share.counted / share.rows):
        message = (
            f"the loss is averaged over all {share.rows} positions, {ignored} of which are ignored: "
            f"it is {share.counted / share.rows:.2f} of what it should be, by another factor in each batch"
        )
    else:
        return
    loop.judge(
        REDUCTION, moment.step, REDUCTION.margin(share.share, 1.0, NEAR),
        lambda: {
            "message": message, "evidence": f"weights of {share.counted} targets sum to {share.share:.4g}",
            "severity": Severity.WARN,
        },
    )  # fmt: skip


def _of_unequal(loop: Loop, moment: Moment, shares: list[Share], accumulated: bool) -> None:
    """A mean of means, of batches that count unequally many of equally many positions; or of accumulated ones of equally many
    samples, padded to other lengths."""
    counts = [s.counted for s in shares]
    padded = accumulated and len({s.samples for s in shares}) == 1 and any(s.counted < s.rows for s in shares)
    least = 1.1 if len({s.rows for s in shares}) == 1 else UNEVEN if padded else math.inf
    if max(counts) < least * min(counts):
        return
    even = all(_near(s.share, shares[0].share) for s in shares)
    each = [s.share / s.counted for s in shares]
    apart = max(each) / min(each)
    loop.judge(
        REDUCTION, moment.step, REDUCTION.margin(apart if even else 1.0, 1.0, NEAR),
        lambda: {
            "message": f"{len(shares)} batches with {min(counts)} to {max(counts)} targets weigh the same: "
            f"a target of one counts {apart:.1f} times one of another (a mean of means)",
            "where": "batches", "evidence": f"targets that count: {', '.join(map(str, counts[:8]))}",
            "severity": Severity.WARN,
        },
    )  # fmt: skip
