"""The monitor: evaluates the guards of a phase as one batch and does what the policy says.

Observations come over in ONE host transfer; the margins are then computed in float64 by the very functions that are
proved (not by their float32 image on the device). Under STRICT the check raises before the step: nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from karat.core.errors import InvariantViolation
from karat.core.invariant import Invariant
from karat.core.observation import Observation, Phase
from karat.core.policy import Action, Policy, decide
from karat.core.report import GuardSummary, ProofStatus, Violation
from karat.core.verdict import Verdict
from karat.invariants.runtime.probes import Reading, observe
from karat.invariants.standing import cite

NOT_EXERCISED = "NOT EXERCISED"


class RowSink(Protocol):
    """Where rows go: a Ledger, or a list's append in tests."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Keeps one row."""


@dataclass
class Guard:
    """One invariant on duty in a run, with its declared parameters and what it has seen so far."""

    invariant: Invariant
    parameters: Any
    checks: int = 0
    violations: int = 0
    worst_margin: float = math.inf
    worst_step: int | None = None
    previous: float | None = None

    def count(self, verdict: Verdict, step: int) -> None:
        """Takes one verdict into the tally."""
        self.checks += 1
        self.violations += verdict.violated
        if verdict.margin < self.worst_margin:
            self.worst_margin, self.worst_step = verdict.margin, step

    def summary(self, note: str = "") -> GuardSummary:
        """The tally as the report shows it."""
        state = NOT_EXERCISED if not self.checks else ("VIOLATED" if self.violations else "held")
        return GuardSummary(
            invariant=self.invariant.id,
            slug=self.invariant.slug,
            state=state,
            checks=self.checks,
            violations=self.violations,
            worst_margin=self.worst_margin if math.isfinite(self.worst_margin) else None,
            worst_step=self.worst_step,
            unit=self.invariant.unit,
            required=self.invariant.required(self.parameters),
            note=note,
        )


class Stopped(InvariantViolation):
    """The violation that ends a strict run; `record` is what the report keeps of it."""

    def __init__(self, record: Violation, text: str = "") -> None:
        super().__init__(text or message(record))
        self.record = record

    def __str__(self) -> str:
        return self.seen


def message(v: Violation) -> str:
    """The violation as exception, log and report show it."""
    unit = f" {v.unit}" if v.unit else ""
    where = v.phase if v.phase == Phase.START else f"at step {v.step} ({v.phase}; {v.policy})"
    margin = "not a number" if v.margin is None else f"{v.margin:+.4g}{unit}"
    previous = "" if v.previous_margin is None else f"   (previous {v.previous_margin:+.4g})"
    observed = v.observed if not v.reason else f"{v.observed}   ({v.reason})"
    probe = v.probe if ", " in v.probe else f"invariants/runtime/probes.py, {v.probe}"
    return "\n".join(
        (
            f"{v.invariant} {v.slug} violated {where}",
            f"  observed   {observed}   ({probe})",
            f"  required   {v.required}",
            f"  margin     {margin}{previous}",
            f"  evidence   {v.evidence}",
            f"  next       trainer explain {v.invariant}",
        )
    )


@dataclass
class Monitor:
    """The guards of one run. say(text) is how WARN speaks; standing is what is proved of each invariant."""

    guards: dict[str, Guard]
    policy: Policy
    ledger: RowSink | None = None
    say: Callable[[str], None] = print
    standing: Mapping[str, ProofStatus] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    @classmethod
    def of(cls, guards: Iterable[tuple[Invariant, Any]], policy: Policy, **options: Any) -> Monitor:
        """A monitor of (invariant, parameters) pairs."""
        return cls({invariant.id: Guard(invariant, parameters) for invariant, parameters in guards}, policy, **options)

    def check(self, phase: Phase, step: int, readings: Sequence[Reading]) -> dict[str, float]:
        """Judges the readings of a phase; returns invariant id -> margin. Stopped when strict and one is violated.

        Every reading is judged and recorded before the first violation is raised.
        """
        if self.policy is Policy.OFF:
            return {}
        margins: dict[str, float] = {}
        stop: Violation | None = None
        asked = [reading for reading in readings if reading.invariant_id in self.guards]
        for reading, observation in zip(asked, observe(asked), strict=True):
            guard = self.guards[observation.invariant_id]
            declared = guard.parameters if reading.declared is None else reading.declared
            verdict = guard.invariant.judge(observation.values, declared)
            guard.count(verdict, step)
            before = margins.get(observation.invariant_id, math.inf)
            margins[observation.invariant_id] = verdict.margin if not verdict.margin >= before else before
            if verdict.violated:
                record = self._record(guard, declared, observation, verdict, phase, step)
                if decide(verdict, self.policy) is Action.STOP:
                    stop = stop or record
            guard.previous = verdict.margin if math.isfinite(verdict.margin) else None
        if phase is not Phase.BEFORE_STEP and self.ledger is not None and margins:
            self.ledger.write({"event": "check", "step": step, "phase": phase.value, "margins": margins})
        if stop is not None:
            raise Stopped(stop)
        return margins

    def _record(
        self, guard: Guard, declared: Any, observation: Observation, verdict: Verdict, phase: Phase, step: int
    ) -> Violation:
        invariant = guard.invariant
        status = self.standing.get(invariant.id)
        record = Violation(
            invariant=invariant.id,
            slug=invariant.slug,
            step=step,
            phase=phase.value,
            policy=self.policy.value,
            observed=invariant.observed(observation.values),
            required=invariant.required(declared),
            margin=verdict.margin if math.isfinite(verdict.margin) else None,
            previous_margin=guard.previous,
            unit=invariant.unit,
            probe=observation.probe,
            evidence=cite(status) if status else "no proof was consulted",
            reason=verdict.reason,
        )
        self.add(record)
        return record

    def add(self, record: Violation) -> None:
        """Keeps a violation, writes it to the ledger and says it, as the policy has it."""
        if len(self.violations) < 1000:
            self.violations.append(record)
        if self.ledger is not None:
            self.ledger.write({"event": "violation", **record.model_dump()})
        count = sum(1 for v in self.violations if v.invariant == record.invariant)
        if self.policy is Policy.WARN and count == 1:
            self.say(message(record))
        elif self.policy is Policy.WARN and count in (10, 100, 1000):
            self.say(f"{record.invariant} {record.slug}: {count} violations so far, the latest at step {record.step}")

    def not_exercised(self) -> list[str]:
        """The guards that never judged anything."""
        return [guard.invariant.id for guard in self.guards.values() if not guard.checks]

    def state(self) -> dict[str, Any]:
        """The tallies, for a checkpoint."""
        return {
            "guards": {
                id_: {"checks": g.checks, "violations": g.violations, "worst_step": g.worst_step, "previous": g.previous,
                      "worst_margin": g.worst_margin if math.isfinite(g.worst_margin) else str(g.worst_margin)}
                for id_, g in self.guards.items()
            },
            "violations": [v.model_dump() for v in self.violations],
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the tallies of a checkpoint."""
        for id_, tally in state["guards"].items():
            if id_ in self.guards:
                guard = self.guards[id_]
                guard.checks, guard.violations = tally["checks"], tally["violations"]
                guard.worst_margin, guard.worst_step = float(tally["worst_margin"]), tally["worst_step"]
                guard.previous = tally["previous"]
        self.violations = [Violation.model_validate(row) for row in state["violations"]]
