"""RUN-11: the loop leaves a step out because a gradient is not finite, and does not clear it: NaN added to is NaN, and no step
is taken any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.anchors import Anchor
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import MANY, Loop

AT_END = 4
"""Backward passes since the last step that are enough at the end of a run."""


class Skipped(Check):
    rules = (RULE,)
    heard = True
    interval = "forwards without a step"

    def __init__(self) -> None:
        self._patience = MANY

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        waited = loop.forwards - loop.applied
        if waited >= self._patience and loop.step > loop.first:
            self._patience = 2 * waited
            self._look(loop, MANY // 2)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self._patience = MANY

    def finish(self, loop: Loop) -> None:
        if loop.step > loop.first:
            self._look(loop, AT_END)

    def _look(self, loop: Loop, least: int) -> None:
        for anchors in loop.anchors.values():
            kept = [a for a in anchors if a.backwards >= least and not_finite(a)]
            if kept:
                self._say(loop, kept[0])
                return

    def _say(self, loop: Loop, kept: Anchor) -> None:
        loop.off(self)
        passes = kept.backwards
        loop.judge(
            RULE, loop.step, RULE.margin(1, 0),
            lambda: {
                "message": f"no step since step {loop.step - 1}, and {passes} backward passes: the gradient is not finite, and "
                "the loop leaves the step out and does not clear it. What is added to NaN is NaN, and no step comes any more: "
                "call zero_grad() where a step is left out",
                "where": "skipped", "severity": Severity.WARN, "phase": "in a forward",
                "evidence": f"the gradient of {kept.name} holds NaN or an infinity and was not cleared",
            },
        )  # fmt: skip


def not_finite(anchor: Anchor) -> bool:
    """Whether a backward added to a gradient that was not finite, and it is still there."""
    gradient = anchor.parameter.grad
    if gradient is None or not anchor.left or bool(torch.isfinite(anchor.left[-1])):
        return False
    return not bool(torch.isfinite(gradient.detach()).all())
