"""Which forwards the loop calls: the model's, or, where it never calls that, those of the model's parts.

A module that only holds others, whose own forward the loop does not call (a LightningModule, a model with a method for the
loss), is watched through its parts: of nested calls the outermost counts. Once the model itself is called in training,
its parts are let go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from karat.invariants.runtime.watching.heard import unheard
from karat.invariants.runtime.watching.naming import compiled, parts, roots
from karat.invariants.runtime.watching.unsaved import Unsaved, after_forward, before_forward

Told = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


class Calls:
    """Hooks before and after the forwards of the model and of its parts; `told` hears of the outermost, when it is over."""

    def __init__(self, model: nn.Module, told: Told) -> None:
        self.forwards = 0
        """Forwards so far in which gradients were on: of the model, or of the part that was called most often."""
        self._told, self._depth = told, 0
        self._counts: dict[int, int] = {}
        whole = [module for _, module in roots(model)]
        some = [] if compiled(model) or whole != [model] else [module for _, module in parts(model)]
        self._whole = [handle for module in whole for handle in self._hooked(module, of_model=True)]
        self._parts = [handle for module in some for handle in self._hooked(module, of_model=False)]

    def renew(self) -> None:
        """Between two steps no call is under way, whatever was raised in one."""
        self._depth = 0

    def remove(self) -> None:
        """Takes all hooks off."""
        for handle in (*self._whole, *self._parts):
            handle.remove()
        self._whole, self._parts = [], []

    def _count(self, module: nn.Module, of_model: bool) -> None:
        if of_model:
            self.forwards += 1
            return
        self._counts[id(module)] = count = self._counts.get(id(module), 0) + 1
        self.forwards = max(self.forwards, count)

    def _hooked(self, module: nn.Module, *, of_model: bool) -> list[Unsaved]:
        def before(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if not unheard():
                self._depth += 1

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            if unheard() or not self._whole:  # taken off by a hook of the same call, torch gives it no kwargs any more
                return
            self._depth = max(0, self._depth - 1)
            if self._depth or output is None:  # inside another one, or the forward raised
                return
            if torch.is_grad_enabled():
                self._count(module, of_model)
            self._told(module, args, kwargs, output)
            if of_model and self._parts and module.training and torch.is_grad_enabled():
                for handle in self._parts:
                    handle.remove()
                self._parts = []

        if isinstance(module, torch.jit.ScriptModule):
            return []  # which takes no hooks
        return [before_forward(module, before), after_forward(module, after)]
