"""RUN-MOVES and RUN-OVERFIT: a step moves the parameters, and some dozens of steps learn one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Rule, some
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.subject import Subject, unhooked
from karat.invariants.runtime.preflight.trees import leaves, replaced

MOVES = Rule("RUN-MOVES", "parameters-move")
OVERFIT = Rule("RUN-OVERFIT", "overfit-one-batch")
STEPS, LEAST_STEPS, LAST = 40, 4, 2
ENOUGH = 12
"""Steps that must have been taken before a loss that does not fall is a finding."""
PART = 4
"""Where time is short, this part of the batch is learnt."""
DECLINE = 0.05
"""Of the first loss: what some dozens of steps must take off it."""
OWN_RATE = 3e-3
"""Adam's rate for the second try: whether the batch can be learnt at all."""


def look_at_moves(subject: Subject) -> Outcome:
    """One real step, at the peak rate: which elements with a gradient are the same bits after it."""
    if all(float(g.get("initial_lr", g.get("lr", 1.0))) == 0 for o in subject.optimizers for g in o.param_groups):
        return [MOVES.warn("the learning rate of every group is 0", evidence="and no scheduler noted an initial one")]
    stuck = subject.first.stuck
    if not stuck:
        raise NotRun("the optimizer holds no parameter that gets a finite gradient")
    due = {n: subject.parameters[n] for n in stuck}
    return _judged(due, stuck) or Held(
        f"{len(due)} parameters move, at most {max(stuck.values()):.0%} of their elements do not"
    )


def _judged(due: dict[str, torch.nn.Parameter], stuck: Mapping[str, float]) -> list[Finding]:
    still = [n for n in due if stuck[n] == 1]
    if len(still) == len(due):
        message = "one step of the optimizer moves no parameter at all, although they get gradients"
        return [MOVES.fail(message, still[0], evidence=f"{len(still)} parameters, the same bits after the step")]
    low = [n for n in due if stuck[n] > 0.5 and due[n].dtype in (torch.bfloat16, torch.float16)]
    other = [n for n in still if n not in low]
    findings = []
    if low:
        worst = max(low, key=lambda n: stuck[n])
        message = (
            f"the step is lost in rounding: {stuck[worst]:.0%} of {worst} ({due[worst].dtype}) stays as it is; "
            "keep master weights in float32 (autocast), or round stochastically"
        )
        evidence = f"elements with a gradient whose bits a step leaves; {some(low)}"
        severity = MOVES.fail if stuck[worst] == 1 else MOVES.warn
        findings.append(severity(message, worst, margin=0.5 - stuck[worst], evidence=evidence))
    if other:
        message = f"one step does not move {some(other)}: the update is below the rounding, or the group's rate is 0"
        findings.append(MOVES.warn(message, other[0], evidence="the same bits after the step"))
    return findings


def look_at_overfit(subject: Subject) -> Outcome:
    """The user's optimizer on one batch; where that does not do it, Adam, to tell the rate from the model."""
    if subject.time_left() <= 0:
        raise NotRun("no time left: raise Spec(seconds=…)")
    began, whole = subject.time_left(), subject.batch
    if began < ENOUGH * subject.notes["seconds of a step"]:
        subject.batch = _first_samples(whole)
    try:
        return _overfitted(subject, began)
    finally:
        subject.batch = whole


def _overfitted(subject: Subject, began: float) -> Outcome:
    """The verdict on the descent, with `began` seconds left at its beginning."""
    losses = _descend(subject)
    spent = began - subject.time_left()
    if math.isfinite(losses[-1]) and len(losses) <= LEAST_STEPS:
        raise NotRun(f"only {len(losses) - 1} steps fit into the time left: raise Spec(seconds=…)")
    seen = f"{losses[0]:.4g} to {_end(losses):.4g} in {len(losses) - 1} steps"
    if _declined(losses):
        return Held(seen)
    if not _end(losses) <= losses[0] + abs(losses[0]):  # also: not a number
        message = "the loss on one batch grows under the given optimizer: its rate is too large, or its sign is wrong"
        margin = losses[0] - _end(losses) if math.isfinite(_end(losses)) else None
        return [OVERFIT.warn(message, margin=margin, evidence=seen)]
    if subject.time_left() < spent:
        raise NotRun(f"no clear decline yet, and no time for a second try: raise Spec(seconds=…)   ({seen})")
    subject.kept.put_back()
    again = _descend(subject, own=True)
    seen += f"; Adam at {OWN_RATE:g}: to {_end(again):.4g}"
    if _declined(again):
        return Held(f"the batch can be learnt, slowly at the given rate: {seen}")
    if min(len(again), len(losses)) <= ENOUGH:
        raise NotRun(f"no clear decline, and the time is up: raise Spec(seconds=…)   ({seen})")
    message = f"{len(losses) - 1} steps on one batch do not lower its loss: the model cannot learn even this"
    return [OVERFIT.warn(message, margin=_end(losses) - losses[0], evidence=seen)]


def _first_samples(batch: Any) -> Any:
    """A part of the batch, where every step on all of it takes too long and its first axis is plainly the samples'."""
    tensors = dict(leaves(batch))
    sizes = {t.shape[0] if t.ndim else 0 for t in tensors.values()}
    size = sizes.pop() if len(sizes) == 1 else 0
    kept = max(2, size // PART)
    return replaced(batch, {path: t[:kept] for path, t in tensors.items()}) if size > kept else batch


def _descend(subject: Subject, *, own: bool = False) -> list[float]:
    """The losses before each step and after the last one: until they fell clearly, are no numbers, or the time is up."""
    losses: list[float] = []
    trained = [p for p in subject.trainable.values() if p.dtype.is_floating_point]
    adam = torch.optim.Adam(trained, lr=OWN_RATE) if own else None
    left = subject.time_left()
    for k in range(STEPS + 1):
        losses.append(float(subject.gradients(seed=k).total.detach()))
        if not math.isfinite(losses[-1]) or (k >= LEAST_STEPS and _declined(losses, 2 * DECLINE)):
            break
        if adam is not None:
            with unhooked(adam):
                adam.step()
        else:
            subject.step()
        pace, left = left - subject.time_left(), subject.time_left()
        if left < 1.2 * pace:  # the next step would end after the time is up
            break
    return losses


def _end(losses: list[float]) -> float:
    return sum(losses[-LAST:]) / len(losses[-LAST:])


def _declined(losses: list[float], share: float = DECLINE) -> bool:
    return math.isfinite(_end(losses)) and losses[0] - _end(losses) > share * abs(losses[0])


MOVES_PROBE = MOVES.probe(
    "a step moves every parameter that has a gradient, by more than its rounding",
    "one step at the peak rate on one batch; later, smaller rates may be lost where this one is not",
    look_at_moves,
)
OVERFIT_PROBE = OVERFIT.probe(
    "a few dozen steps on one batch lower its loss clearly",
    "a heuristic: by 5 % of the first loss, with the given optimizer or Adam; on a part of the batch where time is short",
    look_at_overfit,
)
