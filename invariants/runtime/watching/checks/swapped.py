"""RUN-16: weights that were put in for an evaluation, by hand, and that training then goes on from.

An average is evaluated by copying it into the model, and the weights are to be copied back. Seen on one parameter: it was
written to between a step and a forward without gradients, and it still is what that forward had when the next step comes.
What writes to the weights anyhow, a projection or a slow copy, does so where nothing is evaluated too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.sampling import fit, run_of

FEW = 16
DESIGN = 3
"""First steps, in which a write tells that the loop does so by design."""
RARE = 3
"""Steps, at least, for each that had a forward without gradients before it, for these to be evaluations."""


@dataclass(slots=True)
class Followed:
    """One parameter. version, few: after step `at`; each: what a step adds to the version."""

    parameter: Tensor
    version: int
    at: int
    few: list[float]
    each: int = 0
    before: tuple[int, int] = (-1, 0)

    def written(self, step: int) -> bool:
        """Whether something else than steps wrote to it before this one: by its version, or, where it wrote to `.data`, by
        what it holds."""
        if self.each and self.parameter._version != self.version + self.each * (step - self.at - 1):
            return True
        return self.at == step - 1 and self.few != few(self.parameter)


class Swapped(Check):
    rules = (RULE,)
    interval = TURNS
    heard = True

    def __init__(self) -> None:
        self._followed: Followed | None = None
        self._seen = (-1, False)
        """The step before which a forward without gradients was seen first, and whether the parameter had been written to."""
        self._had: list[float] | None = None
        self._evaluated = 0

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        followed = self._followed
        if followed is None or self._seen[0] == loop.step or torch.is_grad_enabled():
            return
        written = bool(followed.each) and followed.written(loop.step)
        self._seen, self._evaluated = (loop.step, written), self._evaluated + 1
        if written:
            self._had = few(followed.parameter)
            loop.stir(turn=True)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        followed = self._followed
        if followed is None or moment.index or (moment.between and self._seen[0] != moment.step):
            return
        seen, written = self._seen
        had, self._had = self._had, None
        followed.before = moment.step, followed.parameter._version
        if not followed.each:
            return
        if seen != moment.step or moment.step - loop.first <= DESIGN:
            if followed.written(moment.step) and loop.loaded != moment.step:
                loop.off(self)  # the loop writes to its weights by design
            return
        if (
            not written
            or had is None
            or loop.loaded == moment.step
            or self._evaluated * RARE > moment.step - loop.first
        ):
            return
        if had != few(followed.parameter):
            return  # they were put back
        loop.off(self)
        name = loop.names.get(id(followed.parameter), "a parameter")
        loop.judge(
            RULE, moment.step, RULE.margin(2, 1),
            lambda: {
                "message": f"before step {moment.step} other weights were copied into the model and evaluated, and training goes "
                f"on from them: those of {moment.step} steps were not put back (an average that was put in?)",
                "where": "evaluated", "severity": Severity.WARN,
                "evidence": f"{name} was written to between the step and a forward without gradients, and not since",
            },
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index:
            return
        followed = self._followed
        if followed is None:
            held = [moment.held[i].parameter for i in moment.grads if moment.held[i].name]
            able = [p for p in held if p.requires_grad and p.ndim > 1 and fit(p)]
            if able:
                p = min(able, key=Tensor.numel)
                self._followed = Followed(p, p._version, moment.step, few(p))
            return
        if moment.between:
            return
        p = followed.parameter
        if followed.before[0] == moment.step:
            followed.each = p._version - followed.before[1]
        followed.version, followed.at, followed.few = p._version, moment.step, few(p)

    def drop(self) -> None:
        self._followed = self._had = None


def few(parameter: Tensor) -> list[float]:
    """A few of its numbers."""
    numbers: list[float] = run_of(parameter, FEW).tolist()
    return numbers
