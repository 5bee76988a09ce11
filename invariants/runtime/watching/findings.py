"""What the checks of a loop say: judgements, findings, what could not be checked; and which checks are on duty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from karat.core.policy import Policy
from karat.core.report import Violation
from karat.invariants.run.rule import Rule, Severity
from karat.invariants.run.spec import Spec
from karat.invariants.runtime.monitor import RowSink, Stopped
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.tally import Tally

MOST_KEPT = 1000
"""Violations that are kept; the ledger has them all."""


class Findings:
    """Of one run. step: the next one, of the busiest optimizer."""

    def __init__(
        self, spec: Spec, policy: Policy, say: Callable[[str], None], ledger: RowSink | None, first: int
    ) -> None:
        self.spec, self.policy, self.say, self.ledger = spec, policy, say, ledger
        self.step = self.first = first
        """The next step; the first that was watched: other than 0 where a run was resumed."""
        self.violations: list[Violation] = []
        self.suppressed: list[Violation] = []
        self.unchecked: dict[str, str] = {}
        self.tallies: dict[str, Tally] = {}
        self.off_duty: set[int] = set()
        self.resting: set[tuple[int, str]] = set()
        """Checks, by id, that have nothing to do at a moment for the rest of the run."""
        self.duties = 0
        """How often a check went off duty or to rest."""
        self._said: dict[tuple[str, str], int] = {}
        self._stop: Violation | None = None

    def judge(self, rule: Rule, step: int, margin: float, describe: Callable[[], Mapping[str, Any]]) -> bool:
        """Counts one judgement; where the margin is not that of a number within its limit, reports what `describe` says:
        message, and where, evidence, severity as they are known. Returns whether it held."""
        tally = self.tallies[rule.id]
        tally.take(margin, step)
        if 0 <= margin < math.inf:
            return True
        self.found(rule, step=step, margin=margin, **describe())
        return False

    def held_for(self, rule: Rule, step: int, margin: float = 0.0) -> None:
        """Counts one judgement that held."""
        tally = self.tallies[rule.id]
        tally.checks += 1
        if margin < tally.worst_margin:
            tally.worst_margin, tally.worst_step = margin, step

    def found(
        self,
        rule: Rule,
        message: str,
        *,
        step: int | None = None,
        where: str = "",
        margin: float | None = None,
        evidence: str = "",
        severity: Severity | None = None,
        phase: str = "before the step",
    ) -> None:
        """Reports a violation: once for each rule and place. Under strict a FAIL ends the run, once all have been asked."""
        at = self.step if step is None else step
        tally = self.tallies[rule.id]
        tally.violations += 1
        key = (rule.id, where)
        self._said[key] = self._said.get(key, 0) + 1
        if self._said[key] > 1:
            return
        by = self.spec.suppressed((rule.id, rule.slug), where)
        record = Violation(
            invariant=rule.id, slug=rule.slug, step=at, phase=phase, policy=self.policy.value, observed=message,
            required=rule.statement, margin=margin if margin is not None and math.isfinite(margin) else None,
            previous_margin=None, unit=rule.unit, probe="watch, " + tally.interval, evidence=evidence,
            reason=f"suppressed: {by.reason}" if by else "", severity=str(severity or rule.severity), where=where,
        )  # fmt: skip
        if by is not None:
            tally.violations -= 1
            self.suppressed.append(record)
            return
        self.keep(record)

    def keep(self, record: Violation) -> None:
        """Keeps a violation, writes it to the ledger and says it, as the policy has it."""
        if len(self.violations) < MOST_KEPT:
            self.violations.append(record)
        if self.ledger is not None:
            self.ledger.write({"event": "violation", **record.model_dump()})
        if self.policy is Policy.WARN:
            self.say(spoken(record))
        if self.policy is Policy.STRICT and record.severity == Severity.FAIL:
            self._stop = self._stop or record

    def stop_if_strict(self) -> None:
        """Raises Stopped for the first FAIL that was found under strict."""
        if self._stop is not None:
            record, self._stop = self._stop, None
            raise Stopped(record, spoken(record))

    def not_checked(self, rule: Rule, why: str) -> None:
        """Says that a rule could not be judged, and why; the first reason counts."""
        self.unchecked.setdefault(rule.slug, why)

    def broke(self, check: Check, moment: str, error: BaseException) -> None:
        """Takes a check off duty that raised, and says so in the report; the loop goes on."""
        self.off(check)
        text = (str(error).strip().splitlines() or [""])[0]
        for rule in check.rules:
            self.not_checked(rule, f"its check raised in {moment} at step {self.step}: {type(error).__name__}: {text}")

    def off(self, check: Check) -> None:
        """Takes a check off duty."""
        self.off_duty.add(id(check))
        self.duties += 1

    def wake(self, check: Check, *moments: str) -> None:
        """Asks a check again that rested."""
        self.resting.difference_update((id(check), moment) for moment in moments)
        self.duties += 1

    def rest(self, check: Check, *moments: str) -> None:
        """Asks a check no more at some moments: it has nothing to do there for the rest of the run."""
        self.resting.update((id(check), moment) for moment in moments)
        self.duties += 1


def spoken(v: Violation) -> str:
    """The violation as exception, log and report show it."""
    margin = "" if v.margin is None else f"\n  margin     {v.margin:+.4g}{' ' + v.unit if v.unit else ''}"
    evidence = f"\n  evidence   {v.evidence}" if v.evidence else ""
    return (
        f"{v.severity} {v.invariant} {v.slug} at step {v.step} ({v.phase}; {v.policy}): {v.message}\n"
        f"  required   {v.required}{margin}{evidence}\n"
        f"  next       trainer explain {v.invariant}"
    )
