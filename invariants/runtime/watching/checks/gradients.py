"""Reads the gradients of a step for all checks, and judges RUN-8: every trainable parameter gets one that is not zero."""

from __future__ import annotations

from karat.invariants.run.run08_gradient_reach import RULE as REACH
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.reduction import Turns, norms, part


class Gradients(Check):
    """Fills `moment.grads`, `moment.norms` and `moment.whole` before any other check is asked."""

    rules = (REACH,)

    def __init__(self) -> None:
        self._turns: list[Turns] = []

    def start(self, loop: Loop) -> None:
        self._turns = [Turns([h.parameter.numel() for h in held]) for held in loop.held]

    def look(self, loop: Loop, moment: Moment) -> None:
        held, turns = loop.held[moment.index], self._turns[moment.index]
        moment.grads = {i: g for i, h in enumerate(held) if (g := h.parameter.grad) is not None}
        dense = loop.dense(moment.step) or loop.spec.clip_norm is not None or len(turns) == 1
        if dense:
            due, seen = list(moment.grads), list(moment.grads.values())
        else:
            due = [i for i in turns.due(moment.step) if i in moment.grads]
            seen = [part(moment.grads[i], moment.step) for i in due]
        moment.whole = dense
        if due:
            loop.transfer.ask(norms(seen), lambda numbers: moment.norms.update(zip(due, numbers, strict=True)))
