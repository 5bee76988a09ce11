"""Reads the gradients of a step, once, for all checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn.parameter import is_lazy

from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Held, Loop
from karat.invariants.runtime.watching.reduction import Turns, norms, norms_of_uniform, part, squares_of_few, uniform


class Gradients(Check):
    """No rule of its own: fills `moment.norms`, `moment.missing` and `moment.whole` before any other check is asked."""

    heard = True

    def __init__(self) -> None:
        self._read = -1
        self._turns: list[Turns] = []
        self._uniform: list[bool] = []

    def look(self, loop: Loop, moment: Moment) -> None:
        if self._read != loop.renamed:
            self._prepare(loop)
        held, turns = moment.held, self._turns[moment.index]
        always = loop.always.get(moment.index, ())
        if loop.spec.clip_norm is None and moment.between:
            due, seen = self._in_turn(held, turns, {*turns.first, *always} or turns.due(moment.step), moment)
            if due and self._uniform[moment.index] and (squares := squares_of_few(seen)) is not None:
                loop.transfer.ask(squares, lambda n: moment.norms.update(zip(due, map(math.sqrt, n), strict=True)))
                return
        elif turns.whole or loop.dense(moment.step) or loop.spec.clip_norm is not None:
            grads = moment.grads
            due, seen = list(grads), list(grads.values())
            moment.whole = True
            if len(due) < len(held):
                moment.missing = [i for i in range(len(held)) if i not in grads]
        else:
            places = dict.fromkeys([*turns.first, *always, *turns.due(moment.step)])
            due, seen = self._in_turn(held, turns, places, moment)
        if due:
            reduce = norms_of_uniform if self._uniform[moment.index] else norms
            loop.transfer.ask(reduce(seen), lambda numbers: moment.norms.update(zip(due, numbers, strict=True)))

    def _in_turn(
        self, held: Sequence[Held], turns: Turns, places: Iterable[int], moment: Moment
    ) -> tuple[list[int], list[Tensor]]:
        due: list[int] = []
        seen: list[Tensor] = []
        for i in places:
            grad = held[i].parameter.grad
            if grad is None:
                moment.missing.append(i)
            else:
                due.append(i)
                seen.append(part(grad, moment.step, turns.most))
        return due, seen

    def _prepare(self, loop: Loop) -> None:
        """Made when first needed, for a lazy module has no sizes before."""
        self._read = loop.renamed
        kept = [[h.parameter for h in held if not is_lazy(h.parameter)] for held in loop.held]
        self._turns = [Turns([0 if is_lazy(h.parameter) else h.parameter.numel() for h in held]) for held in loop.held]
        self._uniform = [bool(parameters) and uniform(parameters) for parameters in kept]
