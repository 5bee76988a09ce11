"""RUN-12 and RUN-11, undeclared: batches that are left over go into the next step, or no step is taken any more.

A full step has as many backward passes as all others. One that has more, though less than twice as many, again and again, took
what was left at the end of an epoch. And where a step is left out without clearing, all that follow add up.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE as FRESH
from karat.invariants.run.run12_accumulation import RULE as ACCUMULATION
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

AGAIN = 2
"""Steps that had more."""
PLAIN = 3
"""Steps of one backward pass each, after which many without a step are none of an accumulation."""
PASSES = 32
"""Backward passes since the last step."""
IN_A_ROW = 6
"""Forwards at each of which one pass more was added onto the same gradient."""


class Uneven(Check):
    rules = (ACCUMULATION, FRESH)
    interval = "steps of several backward passes, and forwards without a step"
    heard = True

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        """How many steps had so many backward passes."""
        self._more: list[int] = []
        self._last: tuple[int, int, int] | None = None
        self._row = 0

    def start(self, loop: Loop) -> None:
        if len(loop.optimizers) > 1:
            loop.off(self)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        anchors = loop.anchors.get(0)
        if (
            not anchors
            or not torch.is_grad_enabled()
            or not module.training
            or set(self._counts) != {1}
            or self._counts[1] < PLAIN
        ):
            return
        anchor = anchors[0]
        gradient = anchor.parameter.grad
        if anchor.backwards < PASSES or gradient is None:
            return
        now = id(gradient), gradient._version, anchor.backwards
        last, self._last = self._last, now
        added = last is not None and now[0] == last[0] and now[2] > last[2] and now[1] - last[1] == now[2] - last[2]
        self._row = self._row + 1 if added else 0
        if self._row < IN_A_ROW:
            return
        self._counts = {}
        loop.found(
            FRESH, f"no step since step {loop.step - 1}, and {anchor.backwards} backward passes were added up since: a step was "
            "left out and its gradient was not cleared, so that all that follow are left out as well",
            step=loop.step, where="left out", severity=Severity.WARN, phase="in a forward",
            evidence=f"seen on {anchor.name}: each pass is added onto the sum of those before",
        )  # fmt: skip

    def before_step(self, loop: Loop, moment: Moment) -> None:
        anchors = loop.anchors.get(moment.index)
        self._last, self._row = None, 0
        if not anchors or moment.closure or not anchors[0].backwards:
            return
        count = anchors[0].backwards
        self._counts[count] = self._counts.get(count, 0) + 1
        usual = min(self._counts)
        if loop.spec.accumulation is not None or usual < 2 or count == usual:
            return
        if len(self._counts) > 2 or count >= 2 * usual or moment.forwards != count:
            self._counts = {0: 1}  # another number each time: the loop means it
            return
        self._more.append(moment.step)
        if loop.tallies[ACCUMULATION.id].violations:
            return
        if len(self._more) == AGAIN and self._counts[usual] > AGAIN and not _early(self._more):
            loop.judge(
                ACCUMULATION, moment.step, ACCUMULATION.margin(count, 1, usual),
                partial(
                    dict, message=f"steps {self._more[0]} and {self._more[1]} apply {count} batches where all others apply "
                    f"{usual}: {count - usual} are left over at the end of an epoch, and go into the first step of the next",
                    where="left over", severity=Severity.WARN, evidence=f"seen on {anchors[0].name}",
                ),
            )  # fmt: skip

    def drop(self) -> None:
        self._last = None


def _early(more: list[int]) -> bool:
    """Whether the first step of all was one of those that had more: no epoch was over then."""
    return more[0] == 0
