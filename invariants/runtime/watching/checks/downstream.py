"""RUN-11 of the parameters that are not followed: at turns one more of each optimizer, the last small one and others one
after the other. What clears the gradients of a part of the model leaves those of the rest."""

from __future__ import annotations

from functools import partial
from typing import Any

from karat.invariants.run.cadence import CLOSE, TURNS, turn
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.anchors import Anchor, before_added, fit
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import compiled
from karat.invariants.runtime.watching.reduction import SMALL


class Downstream(Check):
    """Hooks are put on after the step before, so that all of what a step is made of is seen, and taken off at the next."""

    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._anchors: dict[int, Anchor] = {}
        self._left: dict[int, list[float]] = {}
        self._small: dict[int, tuple[int, list[int]]] = {}
        """Of each optimizer how often names were read, and the places of what was small then."""

    def start(self, loop: Loop) -> None:
        if compiled(loop.model):  # which may be compiled anew for other hooks
            loop.off(self)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        following = moment.step + 1
        if following % CLOSE or loop.between(following) or moment.closure:
            return
        self._forget(moment.index)
        place = self._next(loop, moment, turn(following))
        if place is None:
            return
        anchor = Anchor(moment.held[place].name, moment.held[place].parameter, place, [])
        arrives = harmless(loop, self, anchor.arrives)
        anchor.handles = [
            anchor.parameter.register_hook(before_added(anchor, arrives)),  # type: ignore[no-untyped-call]
            anchor.parameter.register_post_accumulate_grad_hook(anchor.added),  # type: ignore[no-untyped-call]
        ]
        self._anchors[moment.index] = anchor

    def _next(self, loop: Loop, moment: Moment, count: int) -> int | None:
        """The place of the parameter whose turn it is; None where it has no gradient, or none is small."""
        read, small = self._small.get(moment.index, (-1, []))
        if read != loop.renamed:
            small = [i for i, h in enumerate(moment.held) if h.name and 0 < h.parameter.numel() <= SMALL]
            self._small[moment.index] = loop.renamed, small
        followed = {anchor.place for anchor in loop.anchors.get(moment.index, ())}
        one_by_one, last = divmod(count, 2)
        for k in range(len(small)):
            place = small[-1 - k] if last else small[(one_by_one + k) % len(small)]
            held = moment.held[place]
            if place not in followed and held.parameter.grad is not None and fit(held):
                return place
        return None

    def look(self, loop: Loop, moment: Moment) -> None:
        anchor = self._anchors.get(moment.index)
        if anchor is not None and anchor.left:
            loop.transfer.ask(anchor.left, partial(self._left.__setitem__, moment.index))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        anchor, left = self._anchors.get(moment.index), self._left.pop(moment.index, [])
        self._forget(moment.index)
        if anchor is None or anchor.cleared or not left or 0 in left:
            return  # what holds is counted where the anchors are judged
        if any(v.invariant == RULE.id for v in loop.violations):
            return  # said, and counted, there
        held = any(h.parameter is anchor.parameter for h in moment.held)
        if held and anchor.backwards and not moment.closure and anchor.parameter.grad is not None:
            loop.judge(RULE, moment.step, RULE.margin(1.0, 0.0), partial(_kept, moment.step, anchor, left))

    def drop(self) -> None:
        for index in list(self._anchors):
            self._forget(index)
        self._left = {}

    def _forget(self, index: int) -> None:
        anchor = self._anchors.pop(index, None)
        for handle in anchor.handles if anchor is not None else ():
            handle.remove()


def _kept(step: int, anchor: Anchor, left: list[float]) -> dict[str, Any]:
    return {
        "message": f"the gradient of {anchor.name} was not cleared since step {step - 1}: zero_grad() is missing, or is of a "
        "part of the model",
        "where": "", "evidence": f"{anchor.backwards} backward passes, the first onto a gradient of norm {left[0]:.3g}",
    }  # fmt: skip
