"""RUN-5: a ReduceLROnPlateau that waits for a number to rise lowers the rate, and the number was never higher than at first: it
is one that is to fall."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import lr_scheduler

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run05_scheduler_steps import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

LEAST = 3
"""Numbers that it was given, at least."""


class NeverBetter(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._first: dict[int, tuple[float, int, float]] = {}
        """Of each scheduler, by id: its best when it was first seen to have one, after how many steps, and the rate then."""

    def before_step(self, loop: Loop, moment: Moment) -> None:
        plateaus = [
            f for f in loop.attached.schedulers
            if f.drives == moment.index and type(f.scheduler) is lr_scheduler.ReduceLROnPlateau and f.scheduler.mode == "max"
        ]  # fmt: skip
        for followed in plateaus:
            scheduler, rate = followed.scheduler, max(moment.rates, default=0.0)
            best, steps = float(scheduler.best), followed.steps
            if not steps or not math.isfinite(best) or best == int(best):  # 0 or 1 is no sign of anything
                continue
            first = self._first.setdefault(id(scheduler), (best, steps, rate))
            if first[0] != best or first[1] > 1:
                self._first[id(scheduler)] = (best, 2, rate)  # it rose
                continue
            if steps < LEAST or not 0 < rate < first[2] or loop.tallies[RULE.id].violations:
                continue
            loop.judge(
                RULE, moment.step, RULE.margin(1.0, 0.0),
                partial(
                    dict, message=f"{followed.name} has mode='max' and lowers the rate, and of {steps} numbers that it was given "
                    f"none was above the first, {best:.4g}: it is stepped with what is to fall, or does not move",
                    where="mode", severity=Severity.WARN, evidence=f"the rate went from {first[2]:.4g} to {rate:.4g}",
                ),
            )  # fmt: skip
        if not plateaus and moment.step - loop.first > 64:
            loop.off(self)

    def drop(self) -> None:
        self._first = {}
