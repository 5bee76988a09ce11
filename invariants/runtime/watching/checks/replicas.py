"""RUN-21: copies of the model that must agree do, those in this process and those of DistributedDataParallel in others.

Two replicas do not step at the same moment. A parameter is compared before this one's step, after it, and before the next:
replicas that agree are equal after it, or both before it and before the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from karat.invariants.run.run21_replicas import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks.processes import Processes
from karat.invariants.runtime.watching.grouping import spoken
from karat.invariants.runtime.watching.lacking import Lacking
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import named_parameters
from karat.invariants.runtime.watching.sampling import View, alike, fit, norms32

TOLERANCE = 1e-6
"""Distance relative to the weights: what another order of adding may do."""


@dataclass
class Looked:
    """The three looks at one parameter around one step: distances to a replica, relative."""

    step: int
    name: str
    replica: int
    seen: list[float] = field(default_factory=list)


class Replicas(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._pairs: list[tuple[str, int, View, View]] = []
        self._open: list[tuple[Looked, int]] = []
        self._finished: list[Looked] = []
        self._processes = Processes()
        self._lacking = Lacking()

    def start(self, loop: Loop) -> None:
        self._pair(loop)
        self._lacking.begin(loop, loop.replicas)
        across = self._processes.start(loop)
        if not self._pairs and not across:
            loop.not_checked(
                RULE, "no replicas: watch(…, replicas=[…]) has none to compare, and no other process trains"
            )
            loop.off(self)

    def _pair(self, loop: Loop) -> None:
        self._pairs = []
        for number, replica in enumerate(loop.replicas, 1):
            theirs = named_parameters(replica)
            for name, mine in loop.parameters.items():
                other = theirs.get(name)
                if other is None or other is mine or not (fit(mine) and fit(other) and mine.requires_grad):
                    continue
                views = View(mine), View(other)
                if alike(views[0].now(), views[1].now()):
                    self._pairs.append((name, number, *views))

    def look(self, loop: Loop, moment: Moment) -> None:
        if moment.index or moment.closure:
            return
        self._processes.look(loop, moment)
        if not self._pairs:
            return
        if self._lacking.due(loop):
            self._grown(loop, moment.step)
        for looked, place in self._open:
            self._ask(loop, looked, place)
        count = len(self._pairs)
        due = range(count) if loop.dense(moment.step) else (moment.step % count,)
        begun = [(Looked(moment.step, *self._pairs[place][:2]), place) for place in due]
        for looked, place in begun:
            self._ask(loop, looked, place)
        self._finished, self._open = [looked for looked, _ in self._open], begun

    def _grown(self, loop: Loop, step: int) -> None:
        """The model has other parameters by now: all are paired anew, and what a replica lacks after a step is said."""
        lacks = self._lacking.now(loop, loop.replicas, step)
        self._open = []
        self._pair(loop)
        if lacks:
            loop.judge(
                RULE, step, RULE.margin(1.0, TOLERANCE),
                lambda: {
                    "message": f"{spoken(lacks, list(loop.parameters))} came to the model after step {self._lacking.since - 1}, "
                    "and a replica does not have it",
                    "where": lacks[0], "evidence": f"by name, of {len(loop.replicas)} replicas",
                },
            )  # fmt: skip

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index or not self._pairs:
            return
        finished, self._finished = self._finished, []
        self._judge(loop, finished)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index == 0:
            for looked, place in self._open:
                self._ask(loop, looked, place)

    def _ask(self, loop: Loop, looked: Looked, place: int) -> None:
        _, _, mine, other = self._pairs[place]
        a, b = mine.now(), other.now()
        loop.transfer.ask(norms32([a - b, a]), partial(_answered, looked))

    def _judge(self, loop: Loop, finished: list[Looked]) -> None:
        apart = []
        for looked in finished:
            if len(looked.seen) < 3:
                continue
            before, after, later = looked.seen
            distance = min(after, max(before, later))
            if distance > TOLERANCE:
                apart.append((looked, distance))
            else:
                loop.held_for(RULE, looked.step, RULE.margin(distance, TOLERANCE))
        if not apart:
            return
        first, distance = apart[0]
        start = first.step
        loop.judge(
            RULE, start, RULE.margin(distance, TOLERANCE),
            lambda: {
                "message": f"replica {first.replica} differs in {first.name} by {distance:.3g} of its norm after step "
                f"{start}" + (", from the start on" if first.seen[0] > TOLERANCE and start == 0 else ""),
                "where": "", "phase": "after the step",
                "evidence": f"{len(apart)} of {len(finished)} parameters looked at differ: "
                f"{', '.join(k.name for k, _ in apart[:4])}",
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        loop.transfer.bring()
        self._processes.finish(loop)
        for looked, _ in self._open:
            if len(looked.seen) == 2:
                looked.seen.append(min(looked.seen))  # the next look is missing: equal once is enough
        self._judge(loop, [looked for looked, _ in self._open])

    def drop(self) -> None:
        self._pairs, self._open = [], []


def _answered(looked: Looked, numbers: list[float]) -> None:
    difference, weight = numbers
    looked.seen.append(difference / weight if weight > 0 else difference)
