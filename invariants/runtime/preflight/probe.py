"""The form of a probe: a rule's id, one line of what must hold, what it cannot see, and the function that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from karat.invariants.runtime.preflight.report import Finding, Severity
from karat.invariants.runtime.preflight.subject import Subject


class NotRun(Exception):
    """A probe has nothing to look at here; the text says why, and what would change that."""


@dataclass(frozen=True)
class Held:
    """What a probe saw that holds."""

    seen: str


Outcome = Held | list[Finding]


@dataclass(frozen=True)
class Probe:
    """One rule. `look` raises NotRun, or returns what held or what was found; whatever it moves is put back."""

    id: str
    slug: str
    statement: str
    limits: str
    look: Callable[[Subject], Outcome]


@dataclass(frozen=True)
class Rule:
    """Makes the findings of one rule."""

    id: str
    slug: str

    def fail(self, message: str, where: str = "", *, margin: float | None = None, evidence: str = "") -> Finding:
        """A finding that mathematics or the spec decides."""
        return self.finding(Severity.FAIL, message, where, margin=margin, evidence=evidence)

    def warn(self, message: str, where: str = "", *, margin: float | None = None, evidence: str = "") -> Finding:
        """A finding by a heuristic."""
        return self.finding(Severity.WARN, message, where, margin=margin, evidence=evidence)

    def finding(
        self, severity: Severity, message: str, where: str = "", *, margin: float | None = None, evidence: str = ""
    ) -> Finding:
        """A finding of either severity."""
        return Finding(
            id=self.id,
            slug=self.slug,
            severity=severity,
            message=message,
            where=where,
            margin=margin,
            evidence=evidence,
        )

    def probe(self, statement: str, limits: str, look: Callable[[Subject], Outcome]) -> Probe:
        """The rule with what it states and what looks."""
        return Probe(self.id, self.slug, statement, limits, look)


def some(names: Iterable[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
