"""What became of each rule: how often it was judged, how near it came to its limit, what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from karat.core.report import GuardSummary
from karat.invariants.run.rule import Rule

NOT_EXERCISED = "NOT EXERCISED"


@dataclass(slots=True)
class Tally:
    """Of one rule in one run."""

    rule: Rule
    interval: str
    checks: int = 0
    violations: int = 0
    worst_margin: float = math.inf
    worst_step: int | None = None

    def take(self, margin: float, step: int) -> None:
        """Counts one judgement."""
        self.checks += 1
        if margin < self.worst_margin:
            self.worst_margin, self.worst_step = margin, step

    def summary(self, note: str = "") -> GuardSummary:
        """The tally as the report shows it."""
        state = "VIOLATED" if self.violations else ("held" if self.checks else NOT_EXERCISED)
        return GuardSummary(
            invariant=self.rule.id, slug=self.rule.slug, state=state, checks=self.checks, violations=self.violations,
            worst_margin=self.worst_margin if math.isfinite(self.worst_margin) else None, worst_step=self.worst_step,
            unit=self.rule.unit, required=self.rule.statement, note=note or self.interval,
        )  # fmt: skip
