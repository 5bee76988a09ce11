"""What one check says of a log: held, violated, suppressed or not decided, and from how many rows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.rule import Rule, Severity

SLUGS = {rule.id: rule.slug for rule in RULES} | {LR_BAND.id: LR_BAND.slug}


class Outcome(StrEnum):
    HOLDS = "holds"
    VIOLATED = "violated"
    SUPPRESSED = "suppressed"
    UNDECIDED = "not decided"


@dataclass(frozen=True)
class Finding:
    """One check: `severity` is what a violation of it counts; `rows` is how many rows decided it.

    message: what was seen. where: the step or the line. margin: the rule's signed distance to its limit, where a number
    was judged. reason: why it is suppressed, where it is.
    """

    id: str
    severity: Severity
    outcome: Outcome
    message: str
    required: str
    rows: int = 0
    where: str = ""
    margin: float | None = None
    reason: str = ""

    @property
    def slug(self) -> str:
        """The name of the rule: that of RUN-46 is prune."""
        return SLUGS.get(self.id, self.id.removeprefix("RUN-"))

    @property
    def word(self) -> str:
        """What a reader sees first: ok, FAIL, WARN, INFO, suppressed or not decided."""
        if self.outcome is Outcome.VIOLATED:
            return str(self.severity)
        return "ok" if self.outcome is Outcome.HOLDS else str(self.outcome)

    def record(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {"slug": self.slug, **asdict(self), "severity": str(self.severity), "outcome": str(self.outcome)}


def judged(
    rule: Rule,
    severity: Severity,
    number: tuple[float, ...],
    message: str,
    required: str,
    *,
    rows: int,
    where: str = "",
) -> Finding:
    """A finding of a number, with its bounds behind it, decided by the rule's own comparison."""
    margin = rule.margin(*number)
    return decided(rule.id, severity, rule.holds_for(*number), message, required, rows=rows, where=where, margin=margin)


def decided(
    id: str, severity: Severity, holds: bool, message: str, required: str, *, rows: int, where: str = "",
    margin: float | None = None,
) -> Finding:  # fmt: skip
    """A finding of a check that could be decided."""
    kept = margin if margin is not None and math.isfinite(margin) else None
    return Finding(id, severity, Outcome.HOLDS if holds else Outcome.VIOLATED, message, required, rows, where, kept)


def undecided(id: str, severity: Severity, why: str, required: str, *, rows: int = 0) -> Finding:
    """A finding of a check that the log and the declarations do not decide, and why not."""
    return Finding(id, severity, Outcome.UNDECIDED, why, required, rows)


HOLDS, VIOLATED, CANNOT_JUDGE = 0, 1, 2


def exit_code(findings: tuple[Finding, ...]) -> int:
    """1 when a check of severity FAIL is violated, 2 when nothing but the order of the rows was decided, else 0."""
    if any(f.outcome is Outcome.VIOLATED and f.severity is Severity.FAIL for f in findings):
        return VIOLATED
    known = (f for f in findings if f.severity is not Severity.INFO and f.outcome is not Outcome.UNDECIDED)
    return HOLDS if any(f.slug != "log-steps" for f in known) else CANNOT_JUDGE
