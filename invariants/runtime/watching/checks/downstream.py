"""RUN-11 of the parameters that are not followed: at turns, two more of each optimizer, the last small one and others one
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
        self._anchors: dict[int, list[Anchor]] = {}
        self._left: dict[int, list[float]] = {}

    def start(self, loop: Loop) -> None:
        if compiled(loop.model):  # which may be compiled anew for other hooks
            loop.off(self)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        following = moment.step + 1
        if following % CLOSE or loop.between(following) or moment.closure:
            return
        self._forget(moment.index)
        followed = {anchor.place for anchor in loop.anchors.get(moment.index, ())}
        able = [
            i for i, h in enumerate(moment.held)
            if i not in followed and h.name and h.parameter.numel() <= SMALL and h.parameter.grad is not None and fit(h)
        ]  # fmt: skip
        chosen = {able[-1], able[turn(following) % len(able)]} if able else set()
        anchors = [Anchor(moment.held[i].name, moment.held[i].parameter, i, []) for i in sorted(chosen)]
        for anchor in anchors:
            arrives = harmless(loop, self, anchor.arrives)
            anchor.handles = [
                anchor.parameter.register_hook(before_added(anchor, arrives)),  # type: ignore[no-untyped-call]
                anchor.parameter.register_post_accumulate_grad_hook(anchor.added),  # type: ignore[no-untyped-call]
            ]
        self._anchors[moment.index] = anchors

    def look(self, loop: Loop, moment: Moment) -> None:
        left = [norm for anchor in self._anchors.get(moment.index, ()) for norm in anchor.left]
        if left:
            loop.transfer.ask(left, partial(self._left.__setitem__, moment.index))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        anchors, numbers = self._anchors.get(moment.index, []), self._left.pop(moment.index, [])
        if any(v.invariant == RULE.id for v in loop.violations):  # said, and counted, where the anchors are judged
            anchors = []
        for anchor in anchors:
            left, numbers = numbers[: len(anchor.left)], numbers[len(anchor.left) :]
            held = any(h.parameter is anchor.parameter for h in moment.held)
            if moment.closure or not held or not anchor.backwards or anchor.parameter.grad is None:
                continue
            if not anchor.cleared and left and 0 not in left:  # what holds is counted where the anchors are judged
                loop.judge(RULE, moment.step, RULE.margin(1.0, 0.0), partial(_kept, moment.step, anchor, left))
        self._forget(moment.index)

    def drop(self) -> None:
        for index in list(self._anchors):
            self._forget(index)
        self._left = {}

    def _forget(self, index: int) -> None:
        for anchor in self._anchors.pop(index, []):
            for handle in anchor.handles:
                handle.remove()


def _kept(step: int, anchor: Anchor, left: list[float]) -> dict[str, Any]:
    return {
        "message": f"the gradient of {anchor.name} was not cleared since step {step - 1}: zero_grad() is missing, or is of a "
        "part of the model",
        "where": "", "evidence": f"{anchor.backwards} backward passes, the first onto a gradient of norm {left[0]:.3g}",
    }  # fmt: skip
