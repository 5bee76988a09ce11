"""The loop that is watched: its model and optimizers under their names, what was declared, where the run is, what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karat.core.policy import Policy
from karat.core.report import Violation
from karat.invariants.run.rule import Rule, Severity
from karat.invariants.run.spec import Spec, covered
from karat.invariants.runtime.monitor import RowSink, Stopped
from karat.invariants.runtime.watching.attached import Attached
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.naming import named_parameters
from karat.invariants.runtime.watching.tally import Tally
from karat.invariants.runtime.watching.transfer import Transfer

if TYPE_CHECKING:
    from karat.invariants.runtime.watching.anchors import Anchor

MOST_KEPT = 1000
"""Violations that are kept; the ledger has them all."""
DENSE = 3
"""First steps, in which everything is looked at."""
SETTLED, APART = 64, 8
"""From this step on the checks that are `spaced` are asked at every eighth."""
LATER, WIDE = 128, 32
"""And from this one on at every 32nd."""
SPACED = f"every step, from step {SETTLED} on every {APART}th, from {LATER} on every {WIDE}nd"
MANY = 64
"""Forwards without a step after which no check is left out at any."""
LIGHT = 8
"""Until SETTLED the outputs are looked at in every so many steps, which takes a few passes over them."""
OUTPUTS_ARE_LOOKED_AT = f"first steps, every {LIGHT}th to step {SETTLED}, then at powers of two, every K"


Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any], tuple[tuple[str, torch.dtype], ...]]
"""Module, arguments and autocast of a forward."""


@dataclass(slots=True)
class Forwards:
    """The forwards of a loop, as the hooks on its modules see them, which hold nothing else of the loop.

    count: those in which gradients were on: of the model, or of the part that was called most often. call: the last of them
    since the last step. brief: whether checks are told of none but these; untold: how many they were not told of since then.
    evaluated: forwards of modules in eval mode without gradients.
    """

    count: int = 0
    call: Call | None = None
    brief: bool = False
    untold: int = 0
    evaluated: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter that an optimizer holds: its name ("" where it is not the model's), and its group."""

    name: str
    parameter: Tensor
    group: int


def turn(step: int) -> int:
    """Counts the steps in which checks that are `spaced` are asked."""
    if step < SETTLED:
        return step
    return SETTLED + (min(step, LATER) - SETTLED) // APART + max(0, step - LATER) // WIDE


class Loop:
    """Everything that checks share. `step` is the number of optimizer steps that were taken, of the busiest optimizer."""

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], spec: Spec, policy: Policy,
                 every: int, say: Callable[[str], None], ledger: RowSink | None, first: int = 0) -> None:  # fmt: skip
        self.model, self.optimizers, self.spec, self.policy = model, tuple(optimizers), spec, policy
        self.every, self.say, self.ledger = every, say, ledger
        self.scheduler: Any = None
        self.scaler: Any = None
        self.ema: nn.Module | None = None
        self.replicas: tuple[nn.Module, ...] = ()
        self.attached = Attached()
        """The schedulers and loss scalers, once they were looked for; see checks/rates.py."""
        self.transfer = Transfer()
        self.step = self.first = first
        """The next step; the first that was watched: other than 0 where a run was resumed."""
        self.early = False
        """Whether the run ended before its declared total: on purpose, or by an exception of the loop's own."""
        self.so_far = Forwards()
        self.applied = 0
        """How many forwards there had been when the last step was taken."""
        self.always: dict[int, list[int]] = {}
        """Of each optimizer the indices of gradients whose norms are read at every step; see checks/freshness.py."""
        self.anchors: Mapping[int, Sequence[Anchor]] = {}
        """Of each optimizer the parameters whose gradients are followed by hooks; see checks/freshness.py."""
        self.taken = [first] * len(self.optimizers)
        """Steps of each optimizer so far."""
        self.forwards_at = [0] * len(self.optimizers)
        """How many forwards there had been when each took its last step."""
        self.ended = 0.0
        """When the last step ended, by time.perf_counter."""
        self.betweens: list[Any] = []
        """What is asked between two looks, of each optimizer; see between.py."""
        self.captured: Captured | None = None
        """The forward of this step, in the steps in which it is kept; see capture.py."""
        self._capture_next = True
        self.violations: list[Violation] = []
        self.suppressed: list[Violation] = []
        self.unchecked: dict[str, str] = {}
        self.tallies: dict[str, Tally] = {}
        self.fingerprint: dict[str, str] = {}
        """What the run started from: the weights, the first batch. RUN-45 compares runs by it."""
        self.news = ""
        """What changed of the forward since it was probed; the probes look at it again. See checks/changes.py."""
        self.began = time.perf_counter()
        self.off_duty: set[int] = set()
        self.resting: set[tuple[int, str]] = set()
        """Checks, by id, that have nothing to do at a moment for the rest of the run."""
        self.duties = 0
        """How often a check went off duty or to rest."""
        self.loaded = self.restored = -1
        """Steps before which the model, and an optimizer, last loaded a state; see checks/moments.py."""
        self._said: dict[tuple[str, str], int] = {}
        self._stop: Violation | None = None
        self.renamed = 0
        """How often names and holdings were read; another number: indices into `held` mean other parameters."""
        self.rename()

    def rename(self) -> None:
        """Reads names and holdings anew: parameters by name, names by identity, what each optimizer holds."""
        self.renamed += 1
        self.parameters = named_parameters(self.model)
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.held = [
            [Held(self.names.get(id(p), ""), p, g) for g, group in enumerate(o.param_groups) for p in group["params"]]
            for o in self.optimizers
        ]

    def forget(self) -> None:
        """Lets go of the model, the optimizers and all tensors."""
        self.model, self.optimizers, self.held = nn.Module(), (), []
        self.parameters, self.names, self.always, self.anchors = {}, {}, {}, {}
        self.scheduler = self.scaler = self.ema = None
        self.replicas = ()
        self.attached = Attached()
        self.transfer.clear()
        self.captured = self.call = None
        self.betweens = []

    @property
    def forwards(self) -> int:
        """Forwards so far in which gradients were on."""
        return self.so_far.count

    @property
    def call(self) -> Call | None:
        """The last forward with gradients since the last step."""
        return self.so_far.call

    @call.setter
    def call(self, call: Call | None) -> None:
        self.so_far.call = call

    @property
    def capture_next(self) -> bool:
        """Set by a check that wants the next forward to be kept."""
        return self._capture_next

    @capture_next.setter
    def capture_next(self, wanted: bool) -> None:
        self._capture_next = wanted
        if wanted:
            self.so_far.brief = False

    def trainable(self) -> dict[str, nn.Parameter]:
        """Those that ask for a gradient and are not declared frozen."""
        frozen = self.spec.frozen
        return {n: p for n, p in self.parameters.items() if p.requires_grad and not covered(n, frozen)}

    def dense(self, step: int) -> bool:
        """Whether everything is looked at in this step: in the first few, and every K."""
        return step - self.first < DENSE or step % self.every == 0

    def looked(self, step: int) -> bool:
        """Whether the outputs are looked at in this step: in the first few, every 8th to 64, at powers of two, every K."""
        return (step % LIGHT == 0 and (step <= SETTLED or step & (step - 1) == 0)) or self.dense(step)

    def stir(self) -> None:
        """Has all checks asked in full at the next step."""
        self.so_far.brief = False
        for between in self.betweens:
            between.until = 0

    def next_look(self, step: int) -> int:
        """The first step from this one on in which more is asked than between two looks."""
        while self.between(step):
            step += 1
        return step

    def between(self, step: int) -> bool:
        """Whether the checks that are `spaced` are left out in this step; not in one before which the model loaded a state."""
        spaced = step >= SETTLED and step % (APART if step < LATER else WIDE) != 0
        return spaced and step != self.loaded and not self.looked(step)

    # -- what checks say ----------------------------------------------------------------------------------------------

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
