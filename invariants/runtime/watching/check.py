"""The form of a check: what watches for some rules, and the moments of a loop at which it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Rule

if TYPE_CHECKING:
    from karat.invariants.runtime.watching.loop import Loop


@dataclass(slots=True)
class Moment:
    """One call of one optimizer's step. step: counted from 0, of this optimizer.

    grads: index of a parameter in `Loop.held` of this optimizer -> its gradient, of those that have one. norms: index ->
    2-norm, of the gradients that were looked at this step, once they are on the host; `whole` tells that those were all.
    """

    optimizer: torch.optim.Optimizer
    index: int
    step: int
    closure: bool
    forwards: int
    """Forwards in which gradients were on since the last step of this optimizer."""
    grads: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)
    whole: bool = False
    rates: tuple[float, ...] = ()
    """The learning rate of each group; NaN of a group without one."""

    @property
    def norm(self) -> float:
        """The 2-norm of all gradients that were looked at: exact when `whole`, a lower bound when not."""
        return math.sqrt(sum(n * n for n in self.norms.values()))


class Check:
    """Watches for some rules. A subclass overrides the moments that it needs; what it keeps, it drops in `drop`.

    Nothing of the loop may be changed. An exception in a check takes the check off duty, and the report says so.
    """

    rules: tuple[Rule, ...] = ()
    interval: str = "every step"

    def start(self, loop: Loop) -> None:
        """When attached. `loop.not_checked(rule, why)` says what cannot be decided here; `loop.off(self)` ends it."""

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """After each forward of a root module."""

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """When the loop logs something."""

    def look(self, loop: Loop, moment: Moment) -> None:
        """Before a step: ask `loop.transfer` for numbers."""

    def before_step(self, loop: Loop, moment: Moment) -> None:
        """Before a step, with the answers; a FAIL ends a strict run here, before anything changed."""

    def after_step(self, loop: Loop, moment: Moment) -> None:
        """After a step; what is asked for here is answered before the next one."""

    def finish(self, loop: Loop) -> None:
        """At the end of the run."""

    def drop(self) -> None:
        """Lets go of all tensors and hooks."""
