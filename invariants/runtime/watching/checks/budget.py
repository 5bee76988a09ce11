"""RUN-1: no more optimizer steps than declared, and at the end no fewer."""

from __future__ import annotations

from karat.invariants.run.rule import Severity
from karat.invariants.run.run01_step_budget import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop


class StepBudget(Check):
    rules = (RULE,)

    def start(self, loop: Loop) -> None:
        if loop.spec.total_steps is None:
            loop.not_checked(RULE, "total_steps is not declared: watch(…, total_steps=…)")
            loop.off(self)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        total = loop.spec.total_steps or 0
        loop.judge(
            RULE, moment.step, RULE.margin(moment.step + 1, 0, total),
            lambda: {
                "message": f"update {moment.step + 1} of {total}: the run goes on past its declared total",
                "evidence": f"total_steps = {total}; this is update {moment.step + 1}, counted from 1",
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        if loop.early:
            return
        total = loop.spec.total_steps or 0
        loop.judge(
            RULE, loop.step, RULE.margin(loop.step, total, max(total, loop.step)),
            lambda: {
                "message": f"the run ended after {loop.step} of {total} declared steps",
                "where": "end", "phase": "at the end", "evidence": f"{total - loop.step} steps were not taken; where that is "
                "meant, or the run goes on later, say finish(early=…)", "severity": Severity.WARN,
            },
        )  # fmt: skip
