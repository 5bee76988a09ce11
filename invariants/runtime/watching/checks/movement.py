"""RUN-16, RUN-33, RUN-54: a step moves what has a gradient, by more than rounding and less than the weights themselves.

Whether a parameter was written to is told by the counter that tensors keep of writes in place, which costs nothing to
read. Values are compared on samples: of all parameters in the first steps and every K, else of one at every eighth step, or
fourth in low precision, and of those that the counter says were passed over.
"""

from __future__ import annotations

from operator import eq

import torch
from torch import Tensor

from karat.invariants.run.cadence import SETTLED, turn
from karat.invariants.run.run16_parameter_moves import RULE as MOVES
from karat.invariants.run.run33_precision import RULE as PRECISION
from karat.invariants.run.run54_update_ratio import RULE as RATIO
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks.rounding import LOW, Look, Rounding
from karat.invariants.runtime.watching.followed import Followed
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain
from karat.invariants.runtime.watching.sampling import (
    alike,
    native,
    norms32,
    rate_of,
    sharded,
    spread,
    versions,
    window,
)
from karat.invariants.runtime.watching.written import Written

MOST_READ = 32
"""Parameters whose counters are read in a step."""
APART, APART_LOW = 8, 4
"""Steps between two samples of a parameter in turn; of models with some in low precision."""
MOST_KEPT = 4
"""Parameters of which a few elements are kept from one step to the next."""
PATIENCE = {True: 2, False: 8}
"""Looks in a row at which a parameter stands still: of torch's own optimizers, of others, which may collect steps."""
TOO_LARGE, IN_A_ROW = 1.0, 3
DESIGN = 3
"""First steps between which a loop may show that it writes to parameters by design."""


class Movement(Check):
    rules = (MOVES, PRECISION, RATIO)
    spaced = True

    def __init__(self) -> None:
        self._followed: dict[int, Followed] = {}
        self._taken: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        self._answers: list[tuple[int, int, list[Look]]] = []
        self._rounding = Rounding()
        self._stale = False
        self._written = Written()

    def start(self, loop: Loop) -> None:
        if sharded(loop.model):
            for rule in self.rules:
                loop.not_checked(rule, "the parameters are sharded by FSDP: their storage comes and goes")
            loop.off(self)

    def look(self, loop: Loop, moment: Moment) -> None:
        self._taken.pop(moment.index, None)
        held = loop.held[moment.index]
        followed = self._followed.get(moment.index)
        groups = [(id(g["params"]), len(g["params"])) for g in moment.optimizer.param_groups]
        if followed is None or followed.held is not held:
            followed = self._followed[moment.index] = Followed(held, groups)
            followed.apart = APART_LOW if any(h.parameter.dtype in LOW for h in held) else APART
        if followed.groups != groups:  # the optimizer holds other parameters by now
            self._followed.pop(moment.index)
            self._stale = True
            return
        if followed.left is not None and not moment.closure:
            self._between(loop, followed, moment.step)
        if moment.closure:  # looked at after the step: nothing of before is known
            for rule in (MOVES, RATIO):
                loop.not_checked(rule, "the optimizer steps with a closure")
            followed.left = None
            return
        step = moment.step
        dense = loop.dense(step)
        places = followed.places
        looked = followed.looked = window(len(places), MOST_READ, turn(step))
        followed.before = versions(followed.parameters(looked))
        if self._written.waiting:
            self._written.again(followed, step, _written_since(followed, step))
        if dense:
            self._take(followed, moment, places)
        elif followed.urgent or (step % followed.apart == 0 and places):
            at = turn(step) if step >= SETTLED else step // followed.apart
            due = [places[at % len(places)]] if step % followed.apart == 0 and places else []
            self._take(followed, moment, [*due, *followed.urgent])

    def _take(self, followed: Followed, moment: Moment, due: list[int]) -> None:
        """Samples of parameters and of their gradients before the step."""
        taken = []
        for place in dict.fromkeys(due):
            gradient = moment.grads.get(place)
            view = followed.view(place) if gradient is not None and plain(gradient) else None
            if gradient is None or view is None or gradient.stride() != followed.held[place].parameter.stride():
                continue
            sample = spread(gradient)
            if alike(sample, view):
                taken.append((place, view.clone(), sample))
        self._taken[moment.index] = taken

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._answers:
            self._judge(loop)
        if self._written.waiting:
            self._written.say(moment.step)
        if loop.dense(moment.step):
            self._someone_trains(loop, moment)
            self._rounding.types(loop, moment)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        followed = self._followed.get(moment.index)
        if self._stale:
            self._stale = False
            loop.rename()
        if followed is None or moment.closure:
            return
        if moment.between:
            followed.looked = window(len(followed.places), MOST_READ, turn(moment.step))
            self._leave(followed, moment.step)
            return
        places = followed.places
        now = versions(followed.parameters(followed.looked))
        added = [new - old for old, new in zip(followed.before, now, strict=True)]
        followed.turned = moment.step, followed.looked, now, added
        if not any(map(eq, followed.before, now)):
            followed.wrote = True
        elif followed.counters:
            for n, old, new in zip(followed.looked, followed.before, now, strict=True):
                if new != old:
                    followed.wrote = True
                elif places[n] in moment.grads:
                    followed.urgent.setdefault(places[n], moment.step)
        taken = self._taken.pop(moment.index, None)
        if taken:
            self._measure(loop, moment, followed, taken, dict(zip((places[n] for n in followed.looked), zip(
                followed.before, now, strict=True), strict=True)))  # fmt: skip
        if not loop.between(moment.step + 1):
            self._leave(followed, moment.step, now)

    def _leave(self, followed: Followed, step: int, now: list[int] | None = None) -> None:
        """Keeps what there is after a step, to see before the next one what else was written."""
        places = followed.places
        now = versions(followed.parameters(followed.looked)) if now is None else now
        ends, kept = None, range(0)
        if _matters(places, followed):
            try:
                kept = window(len(followed.looked), MOST_KEPT, turn(step))
                ends = torch.cat([followed.few[places[followed.looked[n]]] for n in kept])
            except (RuntimeError, ValueError):  # on several devices, of several types
                ends = None
        followed.left = (followed.looked, now, ends, kept)

    def _measure(
        self, loop: Loop, moment: Moment, followed: Followed, taken: list[tuple[int, Tensor, Tensor]],
        written: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        looks, asked = [], []
        skipped = getattr(moment.optimizer, "found_inf", None) is not None  # a fused step that may do nothing
        dense = loop.dense(moment.step)
        for place, before, gradient in taken:
            held, after = followed.held[place], followed.views[place]
            rate = rate_of(moment.optimizer.param_groups[held.group])
            old, new = written.get(place, (0, 1))
            look = Look(place, held.name, after.dtype, rate, old != new, skipped)
            difference = after - before
            asked += norms32([difference, gradient, before])
            if dense or after.dtype in (torch.bfloat16, torch.float16):
                some = gradient != 0
                asked += [some.sum().float(), (some & (difference == 0)).sum().float()]
                look.counted = True
            looks.append(look)
        step, index = moment.step, moment.index
        if len({t.device for t in asked}) == 1:
            loop.transfer.ask(asked, lambda numbers: self._answered(step, index, looks, numbers))

    def _answered(self, step: int, index: int, looks: list[Look], numbers: list[float]) -> None:
        given = iter(numbers)
        for look in looks:
            look.update, look.gradient, look.weight = next(given), next(given), next(given)
            if look.counted:
                look.some, look.lost = int(next(given)), int(next(given))
        self._answers.append((step, index, looks))

    # -- judgements ---------------------------------------------------------------------------------------------------

    def _judge(self, loop: Loop) -> None:
        answers, self._answers = self._answers, []
        for step, index, looks in answers:
            followed = self._followed.get(index)
            if followed is None:
                continue
            optimizer = loop.optimizers[index]
            for look in looks:
                if look.skipped or not look.rate or not look.gradient > 0:
                    continue
                if look.update > 0 and not look.written:
                    followed.counters = False  # it writes past the counters, to p.data
                    followed.urgent.clear()
                self._moved(loop, followed, optimizer, step, look)
                self._ratio(loop, followed, step, look)
            self._rounding.judge(loop, optimizer, index, step, looks)

    def _moved(self, loop: Loop, followed: Followed, optimizer: torch.optim.Optimizer, step: int, look: Look) -> None:
        passed_over = look.update == 0 and not look.written
        if passed_over and isinstance(optimizer, torch.optim.LBFGS):  # it has converged: it searches no further
            return
        if not passed_over:
            followed.still.pop(look.place, None)
            followed.urgent.pop(look.place, None)
            loop.held_for(MOVES, step, MOVES.margin(0, 1))
            return
        first, count = followed.still.get(look.place, (followed.urgent.get(look.place, step), 0))
        followed.still[look.place] = (first, count + 1)
        patience = PATIENCE[native(optimizer) and followed.held[look.place].parameter.requires_grad]
        loop.judge(
            MOVES, first, MOVES.margin(count + 1, patience - 1),
            lambda: {
                "message": f"{look.name or 'a parameter'} did not move in {count + 1} steps, though its gradient is "
                f"{look.gradient:.3g} and its rate {look.rate:g}: {type(optimizer).__name__}.step() does not write to it",
                "where": look.name, "phase": "after the step",
                "evidence": f"steps {first} to {step}; {'others are' if followed.wrote else 'nothing is'} written to",
            },
        )  # fmt: skip

    def _ratio(self, loop: Loop, followed: Followed, step: int, look: Look) -> None:
        if look.weight == 0:
            followed.zero.add(look.place)
        if followed.held[look.place].parameter.ndim < 2 or look.place in followed.zero or not look.weight > 0:
            return
        ratio = look.update / look.weight
        first, count = followed.large.get(look.place, (step, 0)) if ratio > TOO_LARGE else (step, 0)
        followed.large[look.place] = (first, count + (ratio > TOO_LARGE))
        margin = RATIO.margin(ratio if followed.large[look.place][1] >= IN_A_ROW else min(ratio, TOO_LARGE), TOO_LARGE)
        loop.judge(
            RATIO, first, margin,
            lambda: {
                "message": f"a step changes {look.name or 'a parameter'} by {ratio:.3g} times its own norm, "
                f"{IN_A_ROW} looks in a row: a rate of {look.rate:g} is too large",
                "where": look.name, "evidence": f"steps {first} to {step}, on a sample",
            },
        )  # fmt: skip

    def _someone_trains(self, loop: Loop, moment: Moment) -> None:
        """An optimizer alone in its loop that holds nothing but frozen parameters moves nothing."""
        held = loop.held[moment.index]
        if len(loop.optimizers) > 1 or not held or any(h.parameter.requires_grad or h.name == "" for h in held):
            return
        if any(h.parameter.grad is not None for h in held):
            return
        others = [name for name, p in loop.parameters.items() if p.requires_grad]
        loop.judge(
            MOVES, moment.step, MOVES.margin(2 * bool(others), 1),
            lambda: {
                "message": f"the step moves nothing: all {len(held)} parameters of the optimizer have requires_grad=False",
                "evidence": f"it holds {held[0].name}, …; {len(others)} parameters of the model ask for a gradient, "
                f"{others[0]} first, and no optimizer has them",
            },
        )  # fmt: skip

    def _between(self, loop: Loop, followed: Followed, step: int) -> None:
        """What was written to a parameter between two steps, by something else than the optimizer."""
        left, followed.left = followed.left, None
        if left is None:
            return
        looked, counts, ends, kept = left
        places = followed.places
        now = versions(followed.parameters(looked))
        if now == counts:
            return
        touched = [places[n] for n, a, b in zip(looked, counts, now, strict=True) if a != b]
        self._written.again(followed, step, touched)
        fresh = [p for p in touched if p not in followed.usual]
        if step <= DESIGN:  # a loop that clamps, masks or projects does so from the start
            followed.usual.update(touched)
            return
        if not fresh or ends is None:
            return
        if step <= loop.loaded == loop.restored:
            return  # model and optimizer were put back together
        self._written.judge(loop, followed, step, fresh, looked, kept, ends)

    def finish(self, loop: Loop) -> None:
        loop.transfer.bring()
        self._judge(loop)
        self._written.say()

    def drop(self) -> None:
        self._followed, self._taken, self._answers = {}, {}, []
        self._written.drop()


def _matters(places: list[int], followed: Followed) -> bool:
    """Whether some parameter is not one that the loop writes to by itself anyway."""
    return bool(places) and len(followed.usual) < len(places)


def _written_since(followed: Followed, step: int) -> list[int]:
    """The places that were written to, since the last step that was looked at, more often than the steps between did."""
    if followed.turned is None:
        return []
    last, looked, after, added = followed.turned
    if looked != followed.looked:
        return []
    steps = step - last - 1
    several = zip(looked, after, added, followed.before, strict=True)
    return [followed.places[n] for n, then, each, now in several if now - then != each * steps]
