"""What a watched run comes to: what was judged, what was found, what could not be checked and why, what each guard cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from pydantic import Field

from karat.core.evidence import Record
from karat.core.report import GuardSummary, Violation
from karat.invariants.run.rule import Severity

WIDTH = 120
DECLARED_BY = ("Spec(", "guards.", "watch(", "declared")
"""What a reason holds that says what to declare or to call."""


class WatchReport(Record):
    """The result of `Watch.finish()`. not_checked: slug -> why. cost: check -> microseconds of a step, averaged over those
    after the first three; start_ms: what those three took, with all that is looked for once.

    steps: optimizer steps seen, of the busiest optimizer. step_ms: wall time from the first step to the last, for each.
    fingerprint: of the weights when the guards were attached, and of the first batch.
    """

    kind: str = "karat watch report"
    policy: str
    steps: int
    every: int
    outcome: str
    violations: tuple[Violation, ...]
    suppressed: tuple[Violation, ...] = ()
    guards: tuple[GuardSummary, ...]
    not_checked: Mapping[str, str]
    cost: Mapping[str, float]
    step_ms: float
    start_ms: float = 0.0
    fingerprint: Mapping[str, str] = Field(default_factory=dict)

    def __iter__(self) -> Iterator[GuardSummary]:  # type: ignore[override]
        """The tallies."""
        return iter(self.guards)

    @property
    def failures(self) -> tuple[Violation, ...]:
        """The violations of severity FAIL."""
        return tuple(v for v in self.violations if v.severity == Severity.FAIL)

    @property
    def exit_code(self) -> int:
        """0: something was judged and no FAIL. 1: a FAIL. 2: nothing was judged."""
        if self.failures:
            return 1
        return 0 if any(g.checks for g in self.guards) else 2

    def __str__(self) -> str:
        warnings = len(self.violations) - len(self.failures)
        total = sum(self.cost.values())
        share = f", {total / 1e3 / self.step_ms:.2%} of it" if self.step_ms else ""
        held = [g for g in self.guards if g.state == "held"]
        lines = [
            f"watch: {self.steps} steps, {len(self.failures)} FAIL, {warnings} WARN, {len(held)} rules held, "
            f"{len(self.not_checked)} not checked, {self.outcome}",
            f"cost: {total:.0f} us a step of {self.step_ms:.2f} ms{share}; {self.start_ms:.0f} ms at the start",
        ]
        lines += [f"{v.severity}  {v.invariant:<7} {v.slug:<21} step {v.step}: {v.message}" for v in self.violations]
        lines += [f"suppr {v.invariant:<7} {v.slug:<21} step {v.step}: {v.message}" for v in self.suppressed]
        if held:
            names = ", ".join(f"{g.invariant} {g.slug} {g.checks}" for g in held)
            lines.append(
                textwrap.fill(
                    f"held, and how often it was judged: {names}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
                )
            )
        asked = {slug: why for slug, why in self.not_checked.items() if any(word in why for word in DECLARED_BY)}
        lines += ["not checked, until it is told:"] * bool(asked)
        lines += [f"  {slug:<21} {why}" for slug, why in asked.items()]
        lines += ["not checked, nothing to judge:"] * (len(asked) < len(self.not_checked))
        lines += [f"  {slug:<21} {why}" for slug, why in self.not_checked.items() if slug not in asked]
        return "\n".join(lines)
