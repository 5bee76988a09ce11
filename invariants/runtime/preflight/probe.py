"""The form of a probe: the rule of the RUN family that it judges, and the function that looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from karat.invariants.run.rule import Rule, Severity
from karat.invariants.runtime.preflight.report import Finding
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
    """A probe of one rule. `look` raises NotRun, or returns what held or what was found; whatever it moves is put back."""

    rule: Rule
    look: Callable[[Subject], Outcome]

    @property
    def id(self) -> str:
        """The rule's id."""
        return self.rule.id

    @property
    def slug(self) -> str:
        """The rule's slug."""
        return self.rule.slug


@dataclass(frozen=True)
class Says:
    """Makes the findings of one rule; its numbers are judged by the rule's proved comparison alone."""

    rule: Rule

    def margin(self, value: float, *bounds: float) -> float:
        """The rule's margin."""
        return self.rule.margin(value, *bounds)

    def holds_for(self, value: float, *bounds: float) -> bool:
        """Whether the rule accepts the number."""
        return self.rule.holds_for(value, *bounds)

    def fail(self, message: str, where: str = "", *, margin: float | None = None, evidence: str = "") -> Finding:
        """A finding that mathematics or the spec decides."""
        return self.finding(Severity.FAIL, message, where, margin=margin, evidence=evidence)

    def warn(self, message: str, where: str = "", *, margin: float | None = None, evidence: str = "") -> Finding:
        """A finding by a heuristic."""
        return self.finding(Severity.WARN, message, where, margin=margin, evidence=evidence)

    def finding(
        self, severity: Severity, message: str, where: str = "", *, margin: float | None = None, evidence: str = ""
    ) -> Finding:
        """A finding of either severity; a margin that is no finite number is left out."""
        return Finding(
            id=self.rule.id,
            slug=self.rule.slug,
            severity=severity,
            message=message,
            where=where,
            margin=margin if margin is not None and math.isfinite(margin) else None,
            evidence=evidence,
        )

    def probe(self, look: Callable[[Subject], Outcome]) -> Probe:
        """The rule with what looks."""
        return Probe(self.rule, look)


def some(names: Iterable[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
