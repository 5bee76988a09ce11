"""RUN-16, 33 and 32: a step moves the parameters, by more than their rounding, and some dozens of steps learn one batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE as PARAMETER_MOVES
from karat.invariants.run.run32_overfit import RULE as OVERFIT_ONE
from karat.invariants.run.run33_precision import RULE as LOW_PRECISION
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says, some
from karat.invariants.runtime.preflight.subject import Subject, unhooked
from karat.invariants.runtime.preflight.trees import leaves, replaced

MOVES, PRECISION, OVERFIT = Says(PARAMETER_MOVES), Says(LOW_PRECISION), Says(OVERFIT_ONE)
ALL_STILL = MOVES.margin(2, 1)
"""What moves in no element of one real step counts like two looks of watch, which may meet an optimizer that collects."""
STEPS, LEAST_STEPS, LAST = 40, 4, 2
ENOUGH = 12
"""Steps that must have been taken before a loss that does not fall is a finding."""
PART = 4
"""Where time is short, this part of the batch is learnt."""
LOST = 0.5
"""Share of a parameter's elements that a step may leave as they are."""
DECLINE = 0.05
"""Of the first loss: what some dozens of steps must take off it."""
OWN_RATE = 3e-3
"""Adam's rate for the second try: whether the batch can be learnt at all."""


def look_at_moves(subject: Subject) -> Outcome:
    """One real step, at the peak rate: which elements with a gradient are the same bits after it."""
    if all(float(g.get("initial_lr", g.get("lr", 1.0))) == 0 for o in subject.optimizers for g in o.param_groups):
        message = "the learning rate of every group is 0"
        return [MOVES.warn(message, margin=ALL_STILL, evidence="and no scheduler noted an initial one")]
    stuck = subject.first.stuck
    if not stuck:
        raise NotRun("the optimizer holds no parameter that gets a finite gradient")
    still = [n for n, share in stuck.items() if share == 1]
    if _lost(subject):
        raise NotRun(f"every parameter is in 16 bits and stands still, see {LOW_PRECISION.id}")
    if len(still) == len(stuck):
        message = "one step of the optimizer moves no parameter at all, although they get gradients"
        evidence = f"{len(still)} parameters, the same bits after the step"
        return [MOVES.fail(message, still[0], margin=ALL_STILL, evidence=evidence)]
    other = [n for n in still if not _is_low(subject, n)]
    if other:
        message = f"one step does not move {some(other)}: the update is below the rounding, or the group's rate is 0"
        return [MOVES.warn(message, other[0], margin=ALL_STILL, evidence="the same bits after the step")]
    return Held(f"{len(stuck) - len(still)} of {len(stuck)} parameters move with the first step")


def look_at_precision(subject: Subject) -> Outcome:
    """The same step, of parameters in 16 bits: how many elements with a gradient it leaves, since it rounds away."""
    stuck = {n: share for n, share in subject.first.stuck.items() if _is_low(subject, n)}
    if not stuck:
        raise NotRun("no parameter in bfloat16 or float16 gets a finite gradient")
    if len(stuck) < len(subject.first.stuck) and all(share == 1 for share in subject.first.stuck.values()):
        raise NotRun(f"the step moves no parameter at all, see {PARAMETER_MOVES.id}")
    low = [n for n, share in stuck.items() if not PRECISION.holds_for(share, LOST)]
    worst = max(stuck, key=lambda n: stuck[n])
    if not low:
        return Held(f"at most {stuck[worst]:.0%} of a parameter in 16 bits is left as it is by a step")
    message = (
        f"the step is lost in rounding: {stuck[worst]:.0%} of {worst} ({subject.parameters[worst].dtype}) stays as it is; "
        "keep master weights in float32 (autocast), or round stochastically"
    )
    severity = Severity.FAIL if stuck[worst] == 1 else Severity.WARN
    evidence = f"elements with a gradient whose bits a step leaves; {some(low)}"
    return [PRECISION.finding(severity, message, worst, margin=PRECISION.margin(stuck[worst], LOST), evidence=evidence)]


def _lost(subject: Subject) -> bool:
    """Whether nothing moves, and all of it is in low precision: the rounding is the cause."""
    return all(share == 1 and _is_low(subject, n) for n, share in subject.first.stuck.items())


def _is_low(subject: Subject, name: str) -> bool:
    return subject.parameters[name].dtype in (torch.bfloat16, torch.float16)


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
        return [OVERFIT.warn(message, margin=OVERFIT.margin(_fall(losses), DECLINE), evidence=seen)]
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
    return [OVERFIT.warn(message, margin=OVERFIT.margin(_fall(losses), DECLINE), evidence=seen)]


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
    return OVERFIT.holds_for(_fall(losses), share)


def _fall(losses: list[float]) -> float:
    """The share of the first loss that it fell by; of a first loss of 0 there is none to take."""
    return (losses[0] - _end(losses)) / abs(losses[0]) if losses[0] else 0.0


MOVES_PROBE, PRECISION_PROBE = MOVES.probe(look_at_moves), PRECISION.probe(look_at_precision)
OVERFIT_PROBE = OVERFIT.probe(look_at_overfit)
