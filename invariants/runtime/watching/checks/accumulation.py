"""RUN-12: a step accumulates as many batches as declared, and none is cleared away before it is applied.

One parameter of each optimizer carries a hook of autograd, which counts the backward passes that reach it and sees
whether its gradient was there before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from karat.invariants.run.cadence import SETTLED
from karat.invariants.run.rule import Severity
from karat.invariants.run.run12_accumulation import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain

CONFIRMED = 3
"""Steps in a row in which gradients were cleared away that are reported."""
RESTS = 2
"""Times that as many batches were left over, and cleared or joined to the next, that are reported."""
LEAST_ALIKE = 2
"""Groups of one size that there are between two larger ones."""


@dataclass
class Counter:
    """Of one parameter since the last step. anew: backward passes that found no gradient; version: of its values then."""

    parameter: Tensor
    handle: Any = None
    backwards: int = 0
    anew: int = 0
    version: int = 0
    moved: bool = False
    other: Tensor | None = None
    """A parameter of the model that another optimizer may move."""
    other_version: int = 0

    def arrives(self, gradient: Tensor) -> None:
        """Before a gradient is added."""
        self.backwards += 1
        if self.parameter.grad is None:
            self.anew += 1
            self.moved = self.moved or (self.anew > 1 and self.parameter._version != self.version)
            self.version = self.parameter._version
            if self.other is not None:
                self.moved = self.moved or (self.anew > 1 and self.other._version != self.other_version)
                self.other_version = self.other._version

    def renew(self) -> None:
        """After a step."""
        self.backwards = self.anew = 0
        self.moved = False


@dataclass
class Groups:
    """The sizes of the groups of one optimizer so far. calls: forwards of one batch, by the first full group."""

    calls: int = 0
    fewer: int = 0
    first: int = 0
    cleared: int = 0
    several: int = 0
    usual: int = 0
    rests: list[int] = field(default_factory=list)
    """Batches that were left over and cleared, each time that this was seen."""
    alike: int = 0
    """Groups in a row of the usual size."""
    over: list[int] = field(default_factory=list)
    """Batches beyond the usual, each time that a group had more and all since the last such one were of the usual size."""


class Accumulation(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._counters: dict[int, Counter] = {}
        self._groups: dict[int, Groups] = {}
        self._told = False

    def start(self, loop: Loop) -> None:
        if loop.spec.accumulation is None:
            loop.not_checked(
                RULE, "no number of batches is declared: Spec(accumulation=…); only cleared gradients are seen"
            )
            if len(loop.optimizers) > 1:
                loop.off(self)  # the losses of one clear the gradients of the other

    def quick(self, loop: Loop, place: int, step: int) -> bool:
        counter, declared = self._counters.get(place), loop.spec.accumulation
        if counter is None or counter.anew > 1:
            return False
        groups = self._groups.get(place)
        if declared is None:
            if groups is not None:
                if groups.usual and counter.backwards != groups.usual:
                    return False
                groups.cleared, groups.usual = 0, counter.backwards
                groups.alike += 1
        elif (
            counter.backwards != declared
            or groups is None
            or not groups.calls
            or loop.forwards - loop.forwards_at[place] != declared * groups.calls
        ):
            return False
        else:
            groups.fewer = groups.several = groups.cleared = 0
            groups.usual = max(groups.usual, declared)
            loop.tallies[RULE.id].checks += 1
        counter.renew()
        return True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.closure:
            return
        groups = self._groups.get(moment.index)
        if groups is None:
            groups = self._groups[moment.index] = Groups()
        counter = self._counters.get(moment.index)
        if counter is not None:
            self._cleared(loop, moment, counter, groups)
        if loop.spec.accumulation is not None and moment.forwards:
            self._count(loop, moment, counter, groups, loop.spec.accumulation)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        counter = self._counters.get(moment.index)
        if loop.spec.accumulation is None and moment.step >= SETTLED:  # what clears gradients does so from the start
            self.drop()
            loop.rest(self, "before_step", "after_step")
        elif counter is not None:
            counter.renew()
        else:
            self._choose(loop, moment)

    def _choose(self, loop: Loop, moment: Moment) -> None:
        held = loop.held[moment.index]
        fit = [held[k].parameter for k, g in moment.grads.items() if held[k].parameter.requires_grad and plain(g)]
        fit = [p for p in fit if p.is_leaf]
        if fit:
            own = {id(h.parameter) for h in held}
            others = [p for p in loop.parameters.values() if p.requires_grad and id(p) not in own]
            other = min(others, key=Tensor.numel, default=None)
            counter = self._counters[moment.index] = Counter(min(fit, key=Tensor.numel), other=other)
            counter.handle = counter.parameter.register_hook(harmless(loop, self, counter.arrives))  # type: ignore[no-untyped-call]

    def _cleared(self, loop: Loop, moment: Moment, counter: Counter, groups: Groups) -> None:
        """All but the last of several backward passes were cleared away, and nothing moved between them."""
        if counter.anew < 2:
            groups.cleared = 0
            self._joined(loop, moment, counter, groups)
            groups.usual = max(groups.usual, counter.backwards)
            return
        self._rest(loop, moment, counter, groups)
        lost = counter.anew == counter.backwards == moment.forwards and not counter.moved
        groups.cleared = groups.cleared + 1 if lost and not loop.attached.scalers else 0
        if groups.cleared == CONFIRMED:
            loop.found(
                RULE, f"of the {counter.backwards} batches of a step only the last counts: the gradients are cleared before "
                "each, not after the step",
                step=moment.step, severity=Severity.WARN, where="cleared",
                evidence=f"{counter.anew} of {counter.backwards} backward passes found no gradient, in {CONFIRMED} steps",
            )  # fmt: skip

    def _joined(self, loop: Loop, moment: Moment, counter: Counter, groups: Groups) -> None:
        """Among groups of one size one has more, time and again by as many: the rest of an epoch that was not applied."""
        more = counter.backwards - groups.usual
        if not more or not groups.usual:
            groups.alike += 1
            return
        regular = groups.alike >= LEAST_ALIKE and 0 < more < groups.usual and counter.backwards == moment.forwards
        groups.over = [*groups.over, more] if regular else []
        groups.alike = 0
        if regular:
            counter.backwards = groups.usual  # which stays the usual size
        if len(groups.over) != RESTS or len(set(groups.over)) > 1 or loop.spec.accumulation or loop.attached.scalers:
            return
        loop.found(
            RULE, f"step {moment.step} applies {groups.usual + more} batches, and those between {groups.usual}: the {more} that "
            "are left over at the end of an epoch are neither applied nor cleared, and join the first group of the next",
            step=moment.step, severity=Severity.WARN, where="joined",
            evidence=f"{RESTS} times {more} more backward passes, between groups of {groups.usual}",
        )  # fmt: skip

    def _rest(self, loop: Loop, moment: Moment, counter: Counter, groups: Groups) -> None:
        """A full group came after a few batches that were cleared: as many, time and again, are the end of an epoch."""
        rest = counter.backwards - groups.usual
        if counter.anew != 2 or not 0 < rest < groups.usual or counter.backwards != moment.forwards or counter.moved:
            return
        groups.rests.append(rest)
        if len(groups.rests) != RESTS or len(set(groups.rests)) > 1 or loop.attached.scalers:
            return
        loop.found(
            RULE, f"{rest} batch{'es' * (rest > 1)} before the group of step {moment.step} {'were' if rest > 1 else 'was'} "
            "cleared away and never applied: the last group of an epoch is dropped",
            step=moment.step, severity=Severity.WARN, where="rest",
            evidence=f"groups of {groups.usual}; {RESTS} times {rest} more backward passes, and gradients cleared after them",
        )  # fmt: skip

    def _count(self, loop: Loop, moment: Moment, counter: Counter | None, groups: Groups, declared: int) -> None:
        batches = self._batches(moment, counter, groups, declared)
        if not moment.step:
            groups.first = batches
        why, low, high, at = "", 1, declared, moment.step
        if batches > declared:
            if batches % declared == 0 or loop.attached.scalers:
                high = batches  # updates that were skipped
            else:
                why = "the rest of the last group, or of the last epoch, was not applied before"
            groups.fewer = 0
        elif batches < declared:
            groups.fewer += 1
            if groups.fewer > 1:
                low, why = declared, f"and so did {groups.fewer - 1} before it, so it is not the last of an epoch"
        else:
            if moment.step == 1 and groups.first < declared:
                low, batches, at = declared, groups.first, 0
                why = "it is the first step, and so not the last of an epoch"
            groups.fewer = 0
        self._several(loop, moment, counter, groups, declared)
        loop.judge(
            RULE, moment.step, RULE.margin(batches, low, high),
            lambda: {
                "message": f"step {at} applies {batches} batch{'es' * (batches > 1)}, and {declared} are declared: {why}",
                "evidence": f"accumulation = {declared}; {moment.forwards} forwards since the last step"
                + (f", {counter.backwards} backward passes" if counter is not None else ""),
            },
        )  # fmt: skip

    def _batches(self, moment: Moment, counter: Counter | None, groups: Groups, declared: int) -> int:
        """Batches of this step: forwards, of which the first full group tells how many make a batch, or backward passes,
        whichever is nearer to the declared number."""
        if not groups.calls and moment.forwards >= declared and moment.forwards % declared == 0:
            groups.calls = moment.forwards // declared
        calls = groups.calls or 1
        counts = [moment.forwards // calls if moment.forwards % calls == 0 else moment.forwards]
        if counter is not None and counter.backwards:
            counts.append(counter.backwards)
        return min(counts, key=lambda count: abs(count - declared))

    def _several(self, loop: Loop, moment: Moment, counter: Counter | None, groups: Groups, declared: int) -> None:
        """As many backward passes as a multiple of the declared number, at one step after the other."""
        if declared < 2 or counter is None:
            return
        more = counter.backwards == moment.forwards and counter.backwards > declared
        groups.several = groups.several + 1 if more and counter.backwards % declared == 0 else 0
        if groups.several == CONFIRMED and not loop.attached.scalers:
            loop.found(
                RULE, f"each step applies {counter.backwards} batches, and {declared} are declared",
                step=moment.step, severity=Severity.WARN, where="several",
                evidence=f"{counter.backwards} forwards and backward passes in each of {CONFIRMED} steps",
            )  # fmt: skip

    def drop(self) -> None:
        for counter in self._counters.values():
            if counter.handle is not None:
                counter.handle.remove()
        self._counters = {}
