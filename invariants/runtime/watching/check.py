"""The form of a check: what watches for some rules, and the moments of a loop at which it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Rule

if TYPE_CHECKING:
    from karat.invariants.runtime.watching.loop import Held, Loop


@dataclass(slots=True)
class Moment:
    """One call of one optimizer's step. step: counted from 0, of this optimizer. held: what it holds, as `Loop.held`.

    norms: index in `held` -> 2-norm, of the gradients that were looked at this step, once they are on the host; `whole`
    tells that those were all. missing: indices that were looked at, and have no gradient.
    """

    optimizer: torch.optim.Optimizer
    index: int
    step: int
    closure: bool
    """Whether the step has a closure that was not called yet, so that its gradients are still to come."""
    forwards: int
    """Forwards in which gradients were on since the last step of this optimizer."""
    held: Sequence[Held] = ()
    norms: dict[int, float] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    whole: bool = False
    between: bool = False
    """Whether this is one of the steps in which the checks that are `spaced` are left out."""
    rates: tuple[float, ...] = ()
    """The learning rate of each group; NaN of a group without one."""
    _grads: dict[int, Tensor] | None = None

    @property
    def grads(self) -> dict[int, Tensor]:
        """Index in `held` -> gradient, of those that have one; read when first asked for."""
        if self._grads is None:
            self._grads = {i: g for i, h in enumerate(self.held) if (g := h.parameter.grad) is not None}
        return self._grads

    @property
    def norm(self) -> float:
        """The 2-norm of all gradients that were looked at: exact when `whole`, a lower bound when not."""
        return math.sqrt(sum(n * n for n in self.norms.values()))

    @property
    def scaled(self) -> bool:
        """Whether the gradients are still multiplied by the scale of a GradScaler, and the optimizer itself leaves the
        step out when some are infinite: so with fused optimizers."""
        return getattr(self.optimizer, "found_inf", None) is not None


class Check:
    """Watches for some rules. A subclass overrides the moments that it needs; what it keeps, it drops in `drop`.

    Nothing of the loop may be changed. An exception in a check takes the check off duty, and the report says so.
    """

    rules: tuple[Rule, ...] = ()
    interval: str = "every step"
    of_forward: bool = False
    """Asked only where the forward of the step is kept: it has nothing to look at in others."""
    spaced: bool = False
    """Asked in the steps that run/cadence.py names; after_step also before those."""
    of_rates: bool = False
    """Left out between those steps where no rate changed."""
    heard: bool = False
    """Whether between two looks it need not be asked: by `Loop.stir` it says what it hears, and between.py reads the rest."""
    heard_rules: tuple[Rule, ...] = ()
    """Those that are judged so."""

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

    def quick(self, loop: Loop, place: int, step: int) -> bool:
        """Before a step between two looks: whether there is nothing to look into, told in about a microsecond; see
        between.py. A check that is not `heard` and does not override it is asked in full in every step."""
        raise NotImplementedError

    def quick_rates(self, loop: Loop, place: int, step: int, rates: list[float]) -> bool:
        """As `quick`, of a check `of_rates`, where the rates of the groups are not those of the step before."""
        raise NotImplementedError

    def after_step(self, loop: Loop, moment: Moment) -> None:
        """After a step; what is asked for here is answered before the next one."""

    def finish(self, loop: Loop) -> None:
        """At the end of the run."""

    def drop(self) -> None:
        """Lets go of all tensors and hooks."""
