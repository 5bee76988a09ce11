"""What a preflight found: findings, what held, what was suppressed and by which reason, what was not run and why."""

from __future__ import annotations

from collections.abc import Mapping

from karat.core.evidence import Record
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.rule import Severity

SLUGS = {rule.id: rule.slug for rule in RULES}


class Finding(Record):
    """One thing that is wrong, or looks wrong.

    where: the module or parameter. margin: how far it is from holding, in the unit that `evidence` names; below 0.
    """

    id: str
    slug: str
    severity: Severity
    message: str
    where: str = ""
    margin: float | None = None
    evidence: str = ""
    reason: str = ""
    """Why it is suppressed, where it is."""

    def __str__(self) -> str:
        margin = "" if self.margin is None else f"   margin {self.margin:+.4g}"
        lines = [f"{self.severity} {self.id} {self.slug}: {self.message}"]
        if self.evidence or margin:
            lines.append(f"  evidence  {self.evidence}{margin}")
        return "\n".join([*lines, *([f"  suppressed: {self.reason}"] if self.reason else [])])


class Report(Record):
    """The result of `preflight`. `held` and `not_run` are rule id -> what was seen, or why it was not run."""

    kind: str = "karat preflight report"
    findings: tuple[Finding, ...]
    suppressed: tuple[Finding, ...] = ()
    held: Mapping[str, str]
    not_run: Mapping[str, str]
    seconds: Mapping[str, float]
    """Rule id -> what its probe took."""

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings of severity FAIL."""
        return tuple(f for f in self.findings if f.severity is Severity.FAIL)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings of severity WARN."""
        return tuple(f for f in self.findings if f.severity is Severity.WARN)

    @property
    def exit_code(self) -> int:
        """0: no FAIL, and something held. 1: a FAIL. 2: nothing could be judged."""
        if self.failures:
            return 1
        return 0 if self.held or self.findings else 2

    def __str__(self) -> str:
        head = (
            f"preflight: {len(self.failures)} FAIL, {len(self.warnings)} WARN, {len(self.held)} held, "
            f"{len(self.not_run)} not run, {sum(self.seconds.values()):.2f} s"
        )
        lines = [head, *map(str, self.findings), *map(str, self.suppressed)]
        lines += [f"held     {named(rule)} {seen}" for rule, seen in self.held.items()]
        lines += [f"not run  {named(rule)} {why}" for rule, why in self.not_run.items()]
        return "\n".join(lines)


def named(rule: str) -> str:
    """A rule's id and slug, in columns; what is no rule stands as it is."""
    slug = SLUGS.get(rule)
    return f"{rule:<7} {slug:<21}" if slug else f"{rule:<29}"
