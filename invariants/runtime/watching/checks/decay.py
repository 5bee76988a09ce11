"""RUN-3: a rate that has fallen does not rise again. RUN-4: the warm-up comes to its end.

FAIL where the declaration, or the length of the scheduler at work, says that the decay was over; else WARN. A scheduler
that rises by design is believed.
"""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

from torch.optim import lr_scheduler

from karat.invariants.run.rate_history import AGREE, History
from karat.invariants.run.rule import Severity
from karat.invariants.run.run03_lr_decay import RULE as DECAY
from karat.invariants.run.run04_warmup_ends import RULE as WARMUP
from karat.invariants.run.spec import Schedule
from karat.invariants.runtime.watching.attached import find, parts
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

RISING = (
    lr_scheduler.LinearLR, lr_scheduler.ConstantLR, lr_scheduler.CyclicLR, lr_scheduler.OneCycleLR,
    lr_scheduler.CosineAnnealingWarmRestarts, lr_scheduler.MultiplicativeLR, lr_scheduler.SequentialLR,
    lr_scheduler.ChainedScheduler,
)  # fmt: skip
"""Schedulers of torch that may rise after they fell."""
RESTARTS = re.compile(r"restart|cycl|sgdr|triang|swa|snapshot", re.IGNORECASE)
"""Names of functions and classes whose rates are meant to rise again."""
SHORT = 20
"""Steps below which a run that ends within its warm-up is a trial."""


class Decay(Check):
    rules = (DECAY, WARMUP)
    of_rates = True

    def __init__(self) -> None:
        self._histories: dict[tuple[int, int], History] = {}
        self._last: dict[int, tuple[float, ...]] = {}
        self._by_hand: dict[int, int] = {}
        self._late = False

    def start(self, loop: Loop) -> None:
        if loop.spec.restarts == "any":
            loop.not_checked(DECAY, 'Spec.restarts = "any": rises are meant throughout')

    def quick_rates(self, loop: Loop, place: int, step: int, rates: list[float]) -> bool:
        """Rates that fall are only noted."""
        for group, rate in enumerate(rates):
            history = self._histories.get((place, group))
            if history is None or history.last is None or not rate <= history.last:
                return False
        for group, rate in enumerate(rates):
            history = self._histories[place, group]
            if rate != history.last:
                history.take(step, rate)
        self._last[place] = tuple(rates)
        return True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        step, own, moved = moment.step, moment.index, False
        if moment.rates == self._last.get(own):
            loop.held_for(DECAY, step)
            if loop.spec.total_steps is not None or loop.spec.schedule is not None:
                self._warmup(loop, moment)
            return
        self._last[own] = moment.rates
        for place, rate in enumerate(moment.rates):
            history = self._histories.get((own, place))
            if history is None:
                history = self._histories[own, place] = History()
            elif rate == history.last or rate != rate:
                continue
            before, moved = history.last, True
            if history.take(step, rate) and before is not None:
                self._rose(loop, moment, place, history, before)
        if loop.spec.restarts != "any":
            loop.held_for(DECAY, step)
        if moved:
            self._note_hand(loop, moment)
        self._warmup(loop, moment)

    # -- RUN-3 --------------------------------------------------------------------------------------------------------

    def _rose(self, loop: Loop, moment: Moment, place: int, history: History, before: float) -> None:
        step, restarts = moment.step, loop.spec.restarts
        if restarts == "any" or any(mark in (step, step - 1) for mark in restarts) or _declared(loop, moment):
            history.restart()
            return
        driving = loop.attached.driving(moment.index)
        severity, cause = self._cause(loop, moment, history, before, driving)
        if severity is not None:
            rate = moment.rates[place]
            group = f" of group {place}" if len(moment.rates) > 1 else ""
            loop.judge(
                DECAY, step, DECAY.margin(rate, before * (1 + AGREE)),
                lambda: {
                    "message": f"the learning rate{group} rises from {before:.6g} to {rate:.6g} after it fell: {cause}",
                    "severity": severity,
                    "evidence": f"highest {history.top:.6g}, lowest {history.low:.6g} at step {history.low_at}; "
                    f"{history.falls} falls before",
                },
            )  # fmt: skip
        history.restart()

    def _cause(
        self, loop: Loop, moment: Moment, history: History, before: float, driving: list[Any]
    ) -> tuple[Severity | None, str]:
        """How grave a rise is, None where it is meant, and what brought it about."""
        step, total = moment.step, loop.spec.total_steps
        over = next((s for s in map(_active, driving) if _past_its_length(s)), None)
        if over is not None:
            return Severity.FAIL, (
                f"CosineAnnealingLR was made for T_max = {over.T_max} and has been stepped {over.last_epoch} times; "
                "past T_max its cosine climbs"
            )
        if any(isinstance(s, RISING) or _named_so(s) for s in driving):
            return None, ""
        cause = self._by_what(loop, moment, history, driving)
        if cause is None:
            return None, ""
        if total is not None and step >= total:
            return Severity.FAIL, f"step {step} is past the declared total of {total}, {cause}"
        if moment.index == 0 and loop.spec.schedule is not None:
            return Severity.FAIL, f"the declared schedule does not rise here, {cause}"
        return Severity.WARN, cause

    def _by_what(self, loop: Loop, moment: Moment, history: History, driving: list[Any]) -> str | None:
        """The likeliest cause in words; None where what drives the rate turns out to be made for it."""
        step = moment.step
        now = find(loop.optimizers, loop.scheduler, loop.scaler)
        loop.attached.add(now)
        known = {id(s) for s in driving}
        new = [s for s in now.driving(moment.index) if id(s) not in known]
        if any(isinstance(s, RISING) or _named_so(s) for s in new):
            return None
        if new:
            return f"a new {type(new[-1]).__name__} was made for the optimizer, and starts from its first rate again"
        name = type(driving[0]).__name__ if driving else ""
        if name and self._by_hand.get(moment.index) == step - 1:
            return f"{name} undoes the rate that was set by hand at step {step - 1}"
        if history.mirrored:
            return f"it climbs from its lowest as it fell to it, a cosine that is not clamped at its end{_by(name)}"
        return f"no restart is declared{_by(name)}"

    def _note_hand(self, loop: Loop, moment: Moment) -> None:
        """Notes the step at which the rate is not the one that its scheduler set."""
        for scheduler in loop.attached.driving(moment.index)[:1]:
            last = getattr(scheduler, "_last_lr", None)
            if last and moment.rates and type(last[0]) is float and last[0] != moment.rates[0]:
                self._by_hand[moment.index] = moment.step

    # -- RUN-4 --------------------------------------------------------------------------------------------------------

    def _warmup(self, loop: Loop, moment: Moment) -> None:
        history = self._histories.get((moment.index, 0))
        if history is None:
            return
        step, declared, total = moment.step, loop.spec.schedule, loop.spec.total_steps
        if isinstance(declared, Schedule) and moment.index == 0:
            past = step - declared.warmup if history.last_rise == step and step and not history.falls else 0
            loop.judge(
                WARMUP, step, WARMUP.margin(max(past - 1, 0), 0),
                lambda: {
                    "message": f"the learning rate still rises at step {step}, to {moment.rates[0]:.6g}: the warm-up was "
                    f"declared to end at step {declared.warmup}",
                    "evidence": f"peak = {declared.peak:g}; {history.rises} rises so far",
                },
            )  # fmt: skip
            return
        if total is None:
            return  # at the end it is seen whether the rate still rises
        if self._late or 2 * step <= total:
            loop.held_for(WARMUP, step)
        elif history.warming(step) and not self._exempt(loop, moment.index, history):
            self._late = True
            loop.found(
                WARMUP, f"more than half of the {total} steps are done and the learning rate still rises, to "
                f"{moment.rates[0]:.6g}: the warm-up is stepped more rarely than it was planned for",
                step=step, severity=Severity.WARN, evidence=_rises(history),
            )  # fmt: skip

    def _exempt(self, loop: Loop, index: int, history: History) -> bool:
        """Whether rises are meant: of a range test, of cycles, of one cycle that is no longer than the run."""
        total = loop.spec.total_steps or loop.step
        driving = loop.attached.driving(index)
        one = [s for s in driving if isinstance(s, lr_scheduler.OneCycleLR)]
        if any(s.total_steps <= total + 2 for s in one):
            return True
        return history.geometric or any(_named_so(s) for s in driving if s not in one)

    def finish(self, loop: Loop) -> None:
        if not loop.tallies[WARMUP.id].checks:
            if any(history.rises for history in self._histories.values()):
                loop.held_for(WARMUP, loop.step)
            else:
                loop.not_checked(
                    WARMUP, "the learning rate never rose, and neither a schedule nor total_steps is declared"
                )
        if self._late or loop.early or loop.step < SHORT or loop.spec.schedule is not None:
            return
        for (index, place), history in self._histories.items():
            if place or not history.warming(loop.step) or self._exempt(loop, index, history):
                continue
            names = " ".join(type(s).__name__ for s in loop.attached.driving(index))
            loop.found(
                WARMUP, f"the run of {loop.step} steps ended while the learning rate still rose, at {history.last:.6g}"
                f"{_by(names)}: the warm-up is planned for more steps than are taken, or is stepped too rarely",
                step=loop.step, severity=Severity.WARN, phase="at the end", evidence=_rises(history),
            )  # fmt: skip

    def drop(self) -> None:
        self._histories = {}


def _rises(history: History) -> str:
    return f"{history.rises} rises from step {history.first_rise} to step {history.last_rise}, and no fall"


def _by(name: str) -> str:
    return f" ({name})" if name else ""


def _declared(loop: Loop, moment: Moment) -> bool:
    """Whether the declared schedule rises at this step, or close by where its counting may be off by some."""
    schedule = loop.spec.schedule
    if schedule is None or moment.index:
        return False
    rate = schedule.rate if isinstance(schedule, Schedule) else schedule
    near = [float(rate(s)) for s in range(max(moment.step - 2, 0), moment.step + 2)]
    return any(b > a * (1 + AGREE) for a, b in itertools.pairwise(near))


def _active(scheduler: Any) -> Any:
    """The part of a sequence that is at work, else the scheduler itself."""
    while isinstance(scheduler, lr_scheduler.SequentialLR):
        inside, marks = parts(scheduler), getattr(scheduler, "_milestones", [])
        if not inside:
            break
        scheduler = inside[min(sum(mark <= scheduler.last_epoch for mark in marks), len(inside) - 1)]
    return scheduler


def _past_its_length(scheduler: Any) -> bool:
    return type(scheduler) is lr_scheduler.CosineAnnealingLR and scheduler.last_epoch > scheduler.T_max


def _named_so(scheduler: Any) -> bool:
    """Whether a scheduler, or a function that it was given, is named after restarts or cycles."""
    names = [type(scheduler).__name__]
    for held in getattr(scheduler, "lr_lambdas", None) or []:
        function = held.func if isinstance(held, partial) else held
        names.append(getattr(function, "__qualname__", type(function).__name__))
    return any(RESTARTS.search(name) for name in names)
