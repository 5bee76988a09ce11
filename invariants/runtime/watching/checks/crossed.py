"""RUN-11 of two optimizers that take turns, in one guard or two: what was computed for the step of one stays in the gradients of
the other, and is applied with its own. So the generator goes along with the discriminator where its samples are not detached.
"""

from __future__ import annotations

import weakref
from functools import partial

from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.anchors import Anchor
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

STEPS = 2
"""Steps in a row at which the gradients of another one's turn are there."""
_LIVE: weakref.WeakSet[Crossed] = weakref.WeakSet()


class Crossed(Check):
    """At the step of one optimizer it notes what the others hold; at their own step, what was added to it since."""

    rules = (RULE,)
    interval = "first steps"
    spaced = True

    def __init__(self) -> None:
        self._followed: dict[int, Anchor] = {}
        self._noted: dict[int, tuple[int, weakref.ref[Anchor], str]] = {}
        """Of an optimizer: passes that it held when another one stepped, and the anchor of that one."""
        self._row: dict[int, int] = {}

    def start(self, loop: Loop) -> None:
        _LIVE.add(self)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if not loop.dense(moment.step):
            loop.off(self)
            self.drop()
            return
        anchors = loop.anchors.get(moment.index)
        if not anchors or moment.closure:
            return
        own = self._followed[moment.index] = anchors[0]
        self._judge(loop, moment, own)
        for other in list(_LIVE):
            other.note(own)

    def note(self, stepping: Anchor) -> None:
        """At the step of the optimizer that holds an anchor: what those of this check hold."""
        for place, anchor in self._followed.items():
            if anchor is not stepping and anchor.backwards:
                self._noted[place] = anchor.backwards, weakref.ref(stepping), stepping.name

    def _judge(self, loop: Loop, moment: Moment, own: Anchor) -> None:
        held, there, name = self._noted.pop(moment.index, (0, None, ""))
        other = there() if there is not None else None
        crossed = (
            held == 1 and own.backwards == 2 and other is not None and other.backwards > 0 and len(own.repeats) == 1
            and bool(own.left) and own.left[-1].item() > 0
        )  # fmt: skip
        self._row[moment.index] = row = self._row.get(moment.index, 0) + 1 if crossed else 0
        if row == STEPS:
            loop.judge(
                RULE, moment.step, RULE.margin(1.0, 0.0),
                partial(
                    dict, message="the gradients hold what a backward pass for the step of another optimizer left there, and "
                    f"that is applied with their own: what it was given (to {name}) is not detached, nor is the gradient "
                    "cleared after",
                    where="crossed", severity=Severity.WARN,
                    evidence=f"seen on {own.name}: one pass before the other optimizer's step, one after, and not cleared",
                ),
            )  # fmt: skip

    def drop(self) -> None:
        _LIVE.discard(self)
        self._followed, self._noted = {}, {}
