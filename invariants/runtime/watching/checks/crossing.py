"""RUN-11 among several optimizers: what one applies came after the last step of the others, or before it, not both.

The backward pass of a generator leaves gradients in its discriminator. Left there, they are added to the next of its own.
One parameter of each optimizer carries a hook of autograd that sees onto what a gradient is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from karat.invariants.run.cadence import SETTLED
from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.anchors import fit
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop

CONFIRMED = 2
"""Steps with a sum of both that are reported."""


@dataclass
class Mixed:
    """One parameter. arrived: since its own step or since it was cleared; crossed: the other optimizers
    that stepped after that; joins: how often a gradient came after such a step; left: the norm of what was there at the first."""

    name: str
    parameter: Tensor
    handle: Any = None
    arrived: bool = False
    crossed: list[int] = field(default_factory=list)
    joins: int = 0
    left: list[Tensor] = field(default_factory=list)
    seen: int = 0

    def arrives(self, gradient: Tensor) -> None:
        """Before a gradient is added."""
        held = self.parameter.grad
        if held is None:
            self.crossed, self.joins, self.left = [], 0, []
        elif self.crossed and self.arrived:
            self.joins += 1
            if len(set(self.crossed)) == len(self.crossed) and self.joins == 1:
                with torch.no_grad():
                    self.left.append(torch.linalg.vector_norm(held.detach()))
            self.crossed = []
        self.arrived = True

    def renew(self) -> None:
        """After its own step."""
        self.arrived, self.crossed, self.joins, self.left = False, [], 0, []


class Crossing(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._mixed: dict[int, Mixed] = {}
        self._norms: dict[int, list[float]] = {}

    def start(self, loop: Loop) -> None:
        if len(loop.optimizers) < 2:
            loop.off(self)

    def look(self, loop: Loop, moment: Moment) -> None:
        mixed = self._mixed.get(moment.index)
        if mixed is not None and mixed.left:
            loop.transfer.ask(mixed.left, partial(self._norms.__setitem__, moment.index))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        norms = self._norms.pop(moment.index, None)
        mixed = self._mixed.get(moment.index)
        if mixed is None or not norms or not all(norm > 0 for norm in norms) or moment.closure or mixed.joins != 1:
            return  # several joins: the others step more often, and this one accumulates
        mixed.seen += 1
        if mixed.seen != CONFIRMED:
            return
        self._drop_hook(mixed)
        kind = type(moment.optimizer).__name__
        loop.judge(
            RULE, moment.step, RULE.margin(1, 0),
            lambda: {
                "message": f"the gradients that {mixed.name} got before the step of another optimizer are left, and are "
                f"applied with those that came after: zero_grad() of {kind} is missing between, or a detach() in that loss",
                "where": mixed.name, "severity": Severity.WARN,
                "evidence": f"a gradient of norm {norms[0]:.3g} was there when the next came, in {CONFIRMED} steps",
            },
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step >= SETTLED:  # a loop that does so does it from the start
            self.drop()
            loop.off(self)
            return
        for index, other in self._mixed.items():
            if index != moment.index and other.arrived:
                other.crossed.append(moment.index)
        mixed = self._mixed.get(moment.index)
        if mixed is not None:
            mixed.renew()
        else:
            self._choose(loop, moment)

    def _choose(self, loop: Loop, moment: Moment) -> None:
        """The smallest parameter with a gradient that no other optimizer holds."""
        shared = {id(h.parameter) for k, several in enumerate(loop.held) if k != moment.index for h in several}
        able = [h for h in moment.held if fit(h) and h.parameter.grad is not None and id(h.parameter) not in shared]
        if able:
            one = min(able, key=lambda h: h.parameter.numel())
            mixed = self._mixed[moment.index] = Mixed(one.name or "a parameter outside the model", one.parameter)
            mixed.handle = one.parameter.register_hook(harmless(loop, self, mixed.arrives))  # type: ignore[no-untyped-call]

    def _drop_hook(self, mixed: Mixed) -> None:
        if mixed.handle is not None:
            mixed.handle.remove()
        mixed.handle, mixed.arrived, mixed.left = None, False, []

    def drop(self) -> None:
        for mixed in self._mixed.values():
            self._drop_hook(mixed)
        self._mixed, self._norms = {}, {}
