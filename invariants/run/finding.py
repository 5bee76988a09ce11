"""What one check says of a log: held, violated or not decided, and from how many rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from karat.invariants.run.catalogue import RULES


class Severity(StrEnum):
    """FAIL: mathematics or the declaration decides. WARN: a heuristic. INFO: worth knowing, never an alarm."""

    FAIL = "FAIL"
    WARN = "WARN"
    INFO = "INFO"


class Outcome(StrEnum):
    HOLDS = "holds"
    VIOLATED = "violated"
    UNDECIDED = "not decided"


@dataclass(frozen=True)
class Finding:
    """One check: `severity` is what a violation of it counts; `rows` is how many rows decided it."""

    id: str
    severity: Severity
    outcome: Outcome
    observed: str
    required: str
    rows: int = 0
    at: str = ""

    @property
    def slug(self) -> str:
        """The name of the rule: that of RUN-46 is prune."""
        return next((rule.slug for rule in RULES if rule.id == self.id), self.id.removeprefix("RUN-"))

    @property
    def word(self) -> str:
        """What a reader sees first: ok, FAIL, WARN, INFO or not decided."""
        if self.outcome is Outcome.VIOLATED:
            return str(self.severity)
        return "ok" if self.outcome is Outcome.HOLDS else "not decided"

    def record(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return asdict(self) | {"severity": str(self.severity), "outcome": str(self.outcome)}


def decided(
    id: str, severity: Severity, holds: bool, observed: str, required: str, *, rows: int, at: str = ""
) -> Finding:
    """A finding of a check that could be decided."""
    return Finding(id, severity, Outcome.HOLDS if holds else Outcome.VIOLATED, observed, required, rows, at)


def undecided(id: str, severity: Severity, why: str, required: str, *, rows: int = 0) -> Finding:
    """A finding of a check that the log and the declarations do not decide, and why not."""
    return Finding(id, severity, Outcome.UNDECIDED, why, required, rows)


HOLDS, VIOLATED, CANNOT_JUDGE = 0, 1, 2


def exit_code(findings: tuple[Finding, ...]) -> int:
    """1 when a check of severity FAIL is violated, 2 when nothing but the order of the rows was decided, else 0."""
    if any(f.outcome is Outcome.VIOLATED and f.severity is Severity.FAIL for f in findings):
        return VIOLATED
    judged = [f for f in findings if f.severity is not Severity.INFO and f.outcome is not Outcome.UNDECIDED]
    return HOLDS if any(f.id != "RUN-steps" for f in judged) else CANNOT_JUDGE
