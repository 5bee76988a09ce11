"""RUN-16, while no optimizer has stepped: backward passes come and go, and no step applies them.

One small parameter carries a hook until the first step; it counts the backward passes that found their gradient cleared.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE as MOVES
from karat.invariants.runtime.watching.attached import scales
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop

PASSES = 24
"""Backward passes from cleared gradients without a step that are reported while the run goes on: a scaler that looks for
its scale skips fewer."""
NOTICED = 2
"""Such passes at which the scales of all scalers are noted: one that changes from then on works in this loop."""


class Unstepped(Check):
    rules = (MOVES,)
    interval = "backward passes before the first step"

    def __init__(self) -> None:
        self._handle: Any = None
        self._passes = 0
        self._version = -1
        self._known: Tensor | None = None
        self._said = False
        self._scales: list[tuple[weakref.ref[Any], float]] | None = None
        self._smallest: Tensor | None = None
        self._numbers: Tensor | None = None

    def start(self, loop: Loop) -> None:
        held = [h.parameter for several in loop.held for h in several if h.parameter.requires_grad and h.name]
        fit = [p for p in held if isinstance(p, nn.Parameter) and p.is_leaf and not nn.parameter.is_lazy(p)]
        if fit:
            smallest = min(fit, key=Tensor.numel)
            hook = harmless(loop, self, self._arrived)
            self._handle = smallest.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._smallest, self._numbers = smallest, smallest.detach().clone()

    def _arrived(self, parameter: Tensor) -> None:
        """After a backward pass: was its gradient cleared before? Added to one that was there, it is written to once."""
        gradient = parameter.grad
        if gradient is None:
            return
        anew = gradient is not self._known or gradient._version > self._version + 1
        self._known, self._version = gradient, gradient._version
        self._passes += anew
        if self._passes == NOTICED and self._scales is None:
            self._scales = scales()

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not module.training:
            self._passes = 0  # an estimate of the model as it is, such as of its Fisher information
        if self._passes >= PASSES and not self._said and loop.step == loop.first and module.training:
            self._say(loop)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self.drop()
        loop.off(self)

    def finish(self, loop: Loop) -> None:
        if self._handle is not None and loop.step == loop.first and self._passes > 2 and not loop.early:
            self._say(loop)
        self.drop()

    def _say(self, loop: Loop) -> None:
        self._said = True
        if self._moved():
            loop.not_checked(
                MOVES, "the parameters move without a step that the guards see: a compiled one, or one by hand"
            )
            return
        finite = self._known is None or bool(torch.isfinite(self._known.detach()).all())
        scaler, certain = self._scaler()
        skips = f"the gradients are not finite, and {scaler}, skips each step"
        if scaler and (certain or not finite):
            why = skips
        elif scaler:
            why = f"optimizer.step() was never called; or {skips}"
        elif not finite:
            why = "the gradients are not finite, and the loop, or what takes its steps, leaves each of them out"
        else:
            why = "optimizer.step() was never called"
        loop.found(
            MOVES, f"no step in {self._passes} backward passes: {why}", step=loop.step, where="no step",
            severity=Severity.WARN, phase="in a forward",
            evidence=f"{self._passes} backward passes found their gradient cleared, and nothing was applied",
        )  # fmt: skip

    def _scaler(self) -> tuple[str, bool]:
        """The scaler that works in this loop, and whether it is seen to skip: its scale fell since the passes began, or it
        was made since. Others that live are none of this loop's. Empty without one."""
        if self._scales is None:
            return "", False
        before = {id(scaler): scale for held, scale in self._scales if (scaler := held()) is not None}
        anew = ""
        for held, scale in scales():
            first = before.get(id(held()))
            if first is None:
                anew = "a GradScaler, which is made anew for each batch and so never lowers its scale"
            elif scale < first:
                return f"a GradScaler, whose scale fell from {first:.4g} to {scale:.4g}", True
        return anew, False

    def _moved(self) -> bool:
        """Whether the parameter has other numbers than at the start: a step that is compiled runs no hooks."""
        if self._smallest is None or self._numbers is None or self._smallest.shape != self._numbers.shape:
            return False
        return not torch.equal(self._smallest.detach(), self._numbers.to(self._smallest))

    def drop(self) -> None:
        self._smallest = self._numbers = None
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._known = None
