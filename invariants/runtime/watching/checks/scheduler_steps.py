"""RUN-5: schedulers are stepped for the optimizer that steps, after it, at most once for each of its steps.

Schedulers count their own steps; they are read before each step of the optimizer, nothing is patched.
"""

from __future__ import annotations

import torch
from torch.optim import lr_scheduler

from karat.invariants.run.rule import Severity
from karat.invariants.run.run05_scheduler_steps import RULE
from karat.invariants.runtime.watching.attached import Followed
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

SHORT = 20
"""Steps below which a run may end before the first epoch of its scheduler does."""
EARLY = 10
"""Steps after which a scheduler as long as the run is to have taken more than half as many."""
NEAR = 0.02
"""Share of a run by which its length may differ from the scheduler's."""
DECAYED, NOTHING, LONG = 1e-2, 1e-6, 4
"""Shares of its peak from which on a rate has decayed, by a scheduler of DECAYS and by any other; and how many times as
long as that took the run goes on, until it is said."""
STOOD = 3
"""Updates after which an optimizer that did not step with them counts as left."""
FEW = 4
"""Parameters of which the state of another optimizer is looked at."""
DECAYS = (lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR)


class SchedulerSteps(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._pending: set[int] = set()
        self._done: set[int] = set()
        self._first: dict[int, tuple[float, ...]] = {}
        self._moved: set[int] = set()
        self._peaks: dict[int, float] = {}
        self._decayed: dict[int, int] = {}
        self._stood: dict[int, tuple[int, int, list[int]]] = {}
        """Of a scheduler of another optimizer: a step, its own steps then, and `state_of` that optimizer."""

    def quick(self, loop: Loop, place: int, step: int) -> bool:
        for one in loop.attached.schedulers:
            if id(one) in self._done:
                continue
            if one.drives is None:
                if one.given or one.steps:
                    return False
            elif one.drives == place:
                steps = one.steps
                if steps - self._seen.get(id(one), 0) > 1:
                    return False
                self._seen[id(one)] = steps
        return True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if not loop.attached.schedulers and moment.step:
            loop.not_checked(RULE, "no scheduler of torch's kind was given or found")
            loop.off(self)
            return
        if moment.rates != self._first.setdefault(moment.index, moment.rates):
            self._moved.add(moment.index)
        for one in loop.attached.schedulers:
            if id(one) in self._done:
                continue
            if one.drives is None:
                self._elsewhere(loop, moment, one)
            elif one.drives == moment.index:
                self._own(loop, moment, one)

    def _own(self, loop: Loop, moment: Moment, one: Followed) -> None:
        steps, batches, allowed = one.steps, moment.forwards, int(moment.step > 0)
        since = steps - self._seen.get(id(one), 0)
        self._seen[id(one)] = steps
        if since <= allowed or not batches or moment.closure or self._meant(loop, moment, one, since):
            loop.held_for(RULE, moment.step)
            if moment.step == EARLY:
                self._too_rare(loop, moment, one, steps)
            if since and moment.rates:
                self._too_soon(loop, moment, one, steps)
            return
        self._done.add(id(one))
        loop.judge(
            RULE, moment.step, RULE.margin(since - allowed, 0),
            lambda: {
                "message": _too_often(one.name, since, batches, moment.step),
                "severity": Severity.FAIL if self._as_long(loop, one) and moment.step else Severity.WARN,
                "where": one.name, "evidence": f"{steps} steps of the scheduler to {moment.step} of the optimizer before",
            },
        )  # fmt: skip

    def _meant(self, loop: Loop, moment: Moment, one: Followed, since: int) -> bool:
        """Whether several steps at once may be meant: wrappers step for each process, skipped updates count, a resumed
        run winds its scheduler on."""
        batches = moment.forwards
        if _several_processes() or (loop.attached.scalers and since <= batches):
            return True
        if moment.step == 0:
            return since not in (batches - 1, batches)
        if since == batches and id(one) not in self._pending:  # an update that the loop skipped looks the same, once
            self._pending.add(id(one))
            return True
        return False

    def _too_rare(self, loop: Loop, moment: Moment, one: Followed, steps: int) -> None:
        """A scheduler that is as long as the run is to be stepped at every step of it."""
        if self._as_long(loop, one) and 2 * steps < moment.step:
            self._done.add(id(one))
            loop.found(
                RULE, f"{one.name} was stepped {steps} times in {moment.step} updates, and its length is that of the run, "
                f"{loop.spec.total_steps} updates: it is to be stepped after each",
                step=moment.step, severity=Severity.WARN, where=one.name,
            )  # fmt: skip

    def _too_soon(self, loop: Loop, moment: Moment, one: Followed, steps: int) -> None:
        """A stepwise or exponential decay that is stepped at every update, and was over long ago."""
        rate, key = moment.rates[0], id(one)
        peak = self._peaks[key] = max(self._peaks.get(key, 0.0), rate)
        share, long = (DECAYED, LONG) if type(one.scheduler) in DECAYS else (NOTHING, LONG - 1)
        if not rate <= share * peak * (1 + 1e-6):
            return
        at = self._decayed.setdefault(key, moment.step)
        if moment.step < long * max(at, LONG) or steps < moment.step or not rate:
            return
        self._done.add(key)
        loop.found(
            RULE, f"{one.name} had the rate at {share:g} of its peak after {at} updates, and at {rate / peak:.2g} after "
            f"{moment.step}: it is stepped for each batch, as if its numbers were updates and not epochs",
            step=moment.step, severity=Severity.WARN, where=one.name, evidence=f"{steps} steps of the scheduler so far",
        )  # fmt: skip

    def _as_long_as_it_was(self, loop: Loop, index: int) -> None:
        """At the end: a scheduler whose length is the number of updates, and which was stepped a fraction as often."""
        updates = loop.step - loop.first
        for one in loop.attached.schedulers:
            length = _length(one) if one.drives == index and id(one) not in self._done else None
            if not length or not one.steps or 2 * one.steps > updates or abs(length - updates) > max(1, NEAR * updates):
                continue
            loop.found(
                RULE, f"{one.name} is {length} steps long, as many as the run had updates, and was stepped {one.steps} times: "
                "once an epoch, where its length counts updates",
                step=loop.step, severity=Severity.WARN, where=one.name, phase="at the end",
                evidence=f"{updates} updates, {one.steps} steps of the scheduler",
            )  # fmt: skip

    def _as_long(self, loop: Loop, one: Followed) -> bool:
        total = loop.spec.total_steps
        return total is not None and abs((_length(one) or 0) - total) <= 1

    def _elsewhere(self, loop: Loop, moment: Moment, one: Followed) -> None:
        """A scheduler of an optimizer that is not watched: the one given to watch, or one of the same parameters."""
        scheduler = one.scheduler
        if scheduler is None:
            return
        if one.given:
            self._done.add(id(one))
            loop.judge(
                RULE, moment.step, RULE.margin(1, 0),
                lambda: {
                    "message": f"the {one.name} given to watch drives another optimizer than the one that is stepped: "
                    "the optimizer was made again after it",
                    "where": one.name, "evidence": "scheduler.optimizer is not a watched optimizer",
                },
            )  # fmt: skip
        elif one.steps and self._stopped(loop, moment, one, scheduler):
            self._done.add(id(one))
            loop.found(
                RULE, f"{one.name} is stepped with each update and drives another optimizer of the same parameters, which no "
                "longer steps: the optimizer was made again, and the scheduler was not",
                step=moment.step, severity=Severity.WARN, where=one.name,
                evidence=f"{one.steps} steps of the scheduler in {moment.step - loop.first} updates; the other optimizer's state "
                "stands still",
            )  # fmt: skip
        elif one.steps and self._orphan(loop, moment, scheduler):
            self._done.add(id(one))
            loop.found(
                RULE, f"{one.name} is stepped and drives another optimizer of the same parameters, which is never stepped: "
                "the optimizer was made again after it",
                step=moment.step, severity=Severity.WARN, where=one.name,
                evidence=f"{one.steps} steps of the scheduler so far",
            )  # fmt: skip

    def _stopped(self, loop: Loop, moment: Moment, one: Followed, scheduler: lr_scheduler.LRScheduler) -> bool:
        """Whether the optimizer of a scheduler was stepped once, and is not while the scheduler is, at each update."""
        other, key = scheduler.optimizer, id(one)
        if key not in self._stood:
            self._stood[key] = (moment.step, one.steps, state_of(other))
            return False
        step, steps, state = self._stood[key]
        updates = moment.step - step
        if updates < STOOD or not state or state != state_of(other) or one.steps - steps != updates:
            return False
        return self._shares(moment, scheduler) and not loop.attached.driving(moment.index)

    def _shares(self, moment: Moment, scheduler: lr_scheduler.LRScheduler) -> bool:
        own = {id(p) for group in moment.optimizer.param_groups for p in group["params"]}
        return any(id(p) in own for group in scheduler.optimizer.param_groups for p in group["params"])

    def _orphan(self, loop: Loop, moment: Moment, scheduler: lr_scheduler.LRScheduler) -> bool:
        if getattr(scheduler.optimizer, "_opt_called", False) or loop.attached.driving(moment.index):
            return False
        return self._shares(moment, scheduler)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        total = loop.spec.total_steps
        if total is not None and moment.step + 1 == max(total // 2, SHORT):
            self._never(loop, moment.index, moment.step, f"half of the {total} steps are done, and ")

    def finish(self, loop: Loop) -> None:
        if not loop.early and loop.step >= SHORT:
            for index in range(len(loop.optimizers)):
                self._never(loop, index, loop.step, "")
                self._as_long_as_it_was(loop, index)

    def _never(self, loop: Loop, index: int, step: int, words: str) -> None:
        """No scheduler of an optimizer was stepped, at least one is there, and the rates are those of the first step."""
        own = [one for one in loop.attached.schedulers if one.drives == index]
        living = [one for one in own if one.scheduler is not None and id(one) not in self._done]
        if not living or index in self._moved or any(one.steps for one in own):
            return
        one = living[0]
        self._done.add(id(one))
        loop.found(
            RULE, f"{words}the {one.name} was never stepped: the rate stays where it was",
            step=step, severity=Severity.WARN, where=one.name, phase="at the end" if not words else "before the step",
            evidence=f"{step} updates, 0 steps of the scheduler",
        )  # fmt: skip

    def drop(self) -> None:
        self._seen = {}


def state_of(optimizer: torch.optim.Optimizer) -> list[int]:
    """What each step of an optimizer changes of what it remembers of a few parameters: how often it was written to."""
    few = list(optimizer.state.values())[:FEW]
    return [
        t._version for entry in few if isinstance(entry, dict) for t in entry.values() if isinstance(t, torch.Tensor)
    ]


def _too_often(name: str, since: int, batches: int, step: int) -> str:
    if step == 0:
        if since == batches:
            return f"{name} is stepped before the optimizer: {since} of its rates are used for no update"
        return (
            f"{name} was stepped {since} times before the first update, which takes {batches} batches: "
            "it is stepped for each batch of an accumulation"
        )
    if since == batches:
        return f"{name} is stepped for each of the {batches} batches of an update: {batches} times too fast"
    return f"{name} was stepped {since} times since the last update, which took {batches} batch{'es' * (batches > 1)}"


def _length(one: Followed) -> int | None:
    scheduler = one.scheduler
    for name in ("T_max", "total_steps", "total_iters"):
        value = getattr(scheduler, name, None)
        if isinstance(value, int):
            return value
    return None


def _several_processes() -> bool:
    spread = torch.distributed
    return spread.is_available() and spread.is_initialized() and spread.get_world_size() > 1
