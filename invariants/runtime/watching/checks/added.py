"""RUN-11: a batch that is not trained on adds its gradient: every so often a step has one backward pass more than all others,
from a forward of the very batch that the last such step had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.anchors import Anchor
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Call, Loop

PLAIN = 2
"""Steps of one backward pass that there are between two of two."""
ALIKE = 0.5
"""Of the first of two gradients of one forward: how far the second may be from it, for both to be of nearly the same loss."""


class Added(Check):
    rules = (RULE,)
    heard = True  # a step of two backward passes is asked in full

    def __init__(self) -> None:
        self._other = -1
        """The last step of more than one backward pass."""
        self._last: tuple[int, Any] | None = None

    def start(self, loop: Loop) -> None:
        if len(loop.optimizers) > 1 or loop.spec.accumulation not in (None, 1):
            loop.off(self)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        anchors = loop.anchors.get(moment.index)
        if not anchors:
            return
        anchor = anchors[0]
        if anchor.backwards == 1:
            return
        plain, self._other = moment.step - self._other - 1, moment.step
        if plain >= PLAIN and moment.forwards == 1 and anchor.backwards == 2 and self._twice(loop, moment, anchors):
            return
        if plain < PLAIN or anchor.backwards != 2 or moment.forwards != 2 or not anchor.left or loop.call is None:
            self._last = None
            return
        before, self._last = self._last, (moment.step, _mark(loop.call))
        if before is None or before[1] is None or before[1] != self._last[1]:
            return
        loop.off(self)
        loop.judge(
            RULE, moment.step, RULE.margin(1, 0),
            lambda: {
                "message": f"steps {before[0]} and {moment.step} add the gradient of one and the same batch to that of the "
                "batch they train on: an evaluation calls backward() between the backward pass and the step",
                "where": "added", "severity": Severity.WARN,
                "evidence": f"two forwards and two backward passes in these steps, one in the {plain} between",
            },
        )  # fmt: skip

    def _twice(self, loop: Loop, moment: Moment, anchors: Sequence[Anchor]) -> bool:
        """In a step as no other, two backward passes through one forward bring nearly the same gradient."""
        pairs = [(a.left[0], a.repeats[0]) for a in anchors if a.backwards == 2 and a.cleared and a.left and a.repeats]
        if len(pairs) < len(anchors):
            return False
        apart = [(float(left), float(repeat)) for left, repeat in pairs]
        if not all(0 < repeat <= ALIKE * left for left, repeat in apart):
            return False  # 0: the very same, which RUN-11 tells of every step
        worst = max(repeat / left for left, repeat in apart)
        loop.off(self)
        loop.judge(
            RULE, moment.step, RULE.margin(1, 0),
            lambda: {
                "message": f"step {moment.step} adds up two gradients of one forward, nearly the same: a backward for a look at "
                "the gradients, and the one of the step, with no zero_grad() between. This step is twice as large as others",
                "where": "twice", "severity": Severity.WARN,
                "evidence": f"the second is within {worst:.2g} of the first; one backward pass in all steps before",
            },
        )  # fmt: skip
        return True

    def drop(self) -> None:
        self._last = None


def _mark(call: Call) -> Any:
    """What tells a batch: shapes and sums of its tensors; None where there are none."""
    tensors = [t for _, t in leaves((call[1], call[2])) if not t.is_complex()][:2]
    return tuple((tuple(t.shape), float(t.detach().double().sum())) for t in tensors) or None
