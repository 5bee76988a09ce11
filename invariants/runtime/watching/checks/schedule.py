"""RUN-2: the rate of each update is the declared one.

What the declaration leaves open stays open until a step decides it: where a resumed run starts, whether steps that were
skipped count, and whether the warm-up gives update 0 the rate 0. The rule fails at the step at which nothing fits any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from karat.invariants.run import schedule_causes as causes
from karat.invariants.run.run02_lr_schedule import RULE
from karat.invariants.run.spec import Schedule
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

REMEMBERED = 48
"""Rates that are kept for naming the cause."""


@dataclass(frozen=True)
class Reading:
    """One way to read the declaration. offset: update of the schedule at the first step; skips: whether skipped ones count."""

    rate: Callable[[int], float]
    offset: int
    skips: bool


class FollowsSchedule(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._readings: list[Reading] = []
        self._seen: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)
        self._offsets: list[int] = []
        self._scale = 0.0
        self._usual = 0
        self._skipped = 0
        self._failed = False

    def start(self, loop: Loop) -> None:
        if loop.spec.schedule is None:
            loop.not_checked(RULE, "no schedule is declared: Spec(schedule=…), a Schedule or a function of the update")
            loop.off(self)

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        step = (logged.get("checkpoint") or {}).get("step")
        if isinstance(step, int) and loop.step == 0:
            self._offsets.append(step)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index or self._failed or not moment.rates:
            return
        if not self._seen:
            self._readings = _readings(loop, moment, self._offsets)
        self._count_skipped(moment)
        rate = moment.rates[0]
        expected = self._expected(moment.step)
        self._scale = max(self._scale, abs(expected[0]))
        self._seen.append((moment.step, rate))
        fits = [k for k, value in enumerate(expected) if causes.agree(rate, value, self._scale)]
        first = self._readings[0]
        if fits:
            self._readings = [self._readings[k] for k in fits]
            expected = [expected[k] for k in fits]
        tolerance = causes.AGREE * abs(expected[0]) + 1e-9 * self._scale
        self._failed = not loop.judge(
            RULE, moment.step, RULE.margin(rate, expected[0], tolerance),
            lambda: self._described(loop, moment, first, expected[0]),
        )  # fmt: skip

    def _count_skipped(self, moment: Moment) -> None:
        """Forwards beyond those of a usual step belong to updates that a scaler, or the loop itself, skipped."""
        if moment.closure or not moment.forwards:
            return
        self._usual = min(self._usual, moment.forwards) if self._usual else moment.forwards
        if moment.forwards % self._usual == 0:
            self._skipped += moment.forwards // self._usual - 1

    def _expected(self, step: int) -> list[float]:
        """What each reading has for a step."""
        known: dict[tuple[int, int], float] = {}
        expected = []
        for reading in self._readings:
            at = step + reading.offset + (self._skipped if reading.skips else 0)
            key = (id(reading.rate), at)
            if key not in known:
                known[key] = reading.rate(at)
            expected.append(known[key])
        return expected

    def _described(self, loop: Loop, moment: Moment, reading: Reading, expected: float) -> dict[str, Any]:
        schedule = loop.spec.schedule
        end = schedule.total if isinstance(schedule, Schedule) else loop.spec.total_steps
        end = None if end is None else end - reading.offset
        points = [(step, rate) for step, rate in self._seen]
        cause = causes.cause(lambda s: reading.rate(s + reading.offset), points, moment.forwards, end)
        before = f"; the {len(points) - 1} steps before agreed" if 1 < len(points) <= moment.step + 1 else ""
        return {
            "message": f"the learning rate is {moment.rates[0]:.6g} and {expected:.6g} is declared for step {moment.step}"
            + (f": {cause}" if cause else ""),
            "evidence": f"update {moment.step}, {moment.forwards} forwards{before}",
        }

    def drop(self) -> None:
        self._readings = []


def _readings(loop: Loop, moment: Moment, told: list[int]) -> list[Reading]:
    """The ways to read the declaration, the plain one first."""
    declared = loop.spec.schedule
    rates: list[Callable[[int], float]] = []
    if isinstance(declared, Schedule):
        rates = [declared.rate]
        if "from_zero" not in declared.model_fields_set and declared.warmup:
            rates.append(declared.model_copy(update={"from_zero": False}).rate)
    elif declared is not None:
        rates = [lambda step: causes.safely(declared, step)]
    offsets = dict.fromkeys([0] if loop.first else [0, *told, *_resumed(loop, moment)])
    return [Reading(rate, offset, skips) for skips in (False, True) for rate in rates for offset in offsets]


def _resumed(loop: Loop, moment: Moment) -> list[int]:
    """Updates that were taken before the first one here, as the optimizer's state and the schedulers know them."""
    counts: list[int] = []
    state: Any = next(iter(moment.optimizer.state.values()), None)
    step = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(step, (int, float, Tensor)):
        counts.append(int(step))
    for followed in loop.attached.schedulers:
        if followed.drives == moment.index and (scheduler := followed.scheduler) is not None:
            last = getattr(scheduler, "last_epoch", 0)
            counts.append(int(last) - followed.steps if isinstance(last, (int, float)) else 0)
    return [count for count in counts if count > 0]
