"""RUN-13 where no norm is declared: gradients are made smaller after the step that applied them, and then cleared.

The gradients of two small parameters are held from the end of a step to the next one, in the first steps alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run13_clipping import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.sampling import fit

LEAST, MOST = 8, 4096
"""Elements of a parameter whose gradient is held: of fewer, one is easily a multiple of another."""
HELD = 2
ROUNDING = 1e-5
"""Relative difference of two gradients of which one is a multiple of the other."""


@dataclass(frozen=True)
class Applied:
    """A gradient as a step applied it, and the parameter that had it."""

    name: str
    parameter: Tensor
    gradient: Tensor
    version: int
    copy: Tensor


class LateClip(Check):
    rules = (RULE,)
    interval = "first steps"

    def __init__(self) -> None:
        self._applied: dict[int, list[Applied]] = {}

    def start(self, loop: Loop) -> None:
        if loop.spec.clip_norm is not None:
            loop.off(self)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first > DENSE:
            loop.off(self)
            return
        applied = self._applied.pop(moment.index, [])
        if moment.closure or len(applied) < HELD:
            return
        if all(a.parameter.grad is not a.gradient and a.gradient._version > a.version for a in applied):
            self._judge(loop, moment.step, applied)

    def _judge(self, loop: Loop, step: int, applied: list[Applied]) -> None:
        parts = [_multiple(a) for a in applied]
        bounds = [_bound(a) for a in applied]
        if all(p is not None for p in parts) and max(parts) - min(parts) <= ROUNDING:  # type: ignore[type-var, operator]
            how = f"multiplied by {parts[0]:.4g}, as clip_grad_norm_ does"
        elif all(b is not None for b in bounds) and max(bounds) - min(bounds) <= ROUNDING * max(bounds):  # type: ignore[type-var, operator]
            how = f"cut at {bounds[0]:.4g}, as clip_grad_value_ does"
        else:
            return
        loop.off(self)
        loop.judge(
            RULE, step, RULE.margin(1, 0),
            lambda: {
                "message": f"the gradients of step {step - 1} were {how}, after the step had applied them, and then cleared: "
                "what clips them comes after optimizer.step(), and nothing is clipped",
                "where": "after the step", "severity": Severity.WARN,
                "evidence": f"the gradients of {', '.join(a.name for a in applied)}, at the end of the step and when they "
                "were let go",
            },
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first >= DENSE:
            return
        small = sorted(
            (h for h in moment.held if LEAST <= h.parameter.numel() <= MOST), key=lambda h: h.parameter.numel()
        )
        taken: list[Applied] = []
        for held in small:
            gradient = held.parameter.grad
            if gradient is not None and fit(gradient) and bool(gradient.detach().ne(0).sum() >= LEAST):
                name = held.name or "a parameter outside the model"
                taken.append(Applied(name, held.parameter, gradient, gradient._version, gradient.detach().clone()))
            if len(taken) == HELD:
                break
        self._applied[moment.index] = taken

    def drop(self) -> None:
        self._applied = {}


def _multiple(applied: Applied) -> float | None:
    """The number below one by which a gradient was multiplied; None where it was not."""
    now, before = applied.gradient.detach().double(), applied.copy.double()
    square = float((before * before).sum())
    part = float((now * before).sum()) / square
    rest = float(torch.linalg.vector_norm(now - part * before))
    return part if ROUNDING < part < 1 - ROUNDING and rest <= ROUNDING * part * square**0.5 else None


def _bound(applied: Applied) -> float | None:
    """The number at which a gradient was cut; None where it was not."""
    bound = applied.gradient.detach().abs().max()
    cut = applied.copy.clamp(-bound, bound)
    some = bool(bound > 0) and not torch.equal(cut, applied.copy)
    return float(bound) if some and torch.equal(cut, applied.gradient.detach()) else None
