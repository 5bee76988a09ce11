"""Which forwards the loop calls: the model's, or, where it never calls that, those of the model's parts.

A module that only holds others, whose own forward the loop does not call (a LightningModule, a model with a method for the
loss), is watched through its parts: of nested calls the outermost counts. Once the model itself is called in training,
its parts are let go, and so is the hook before its forward, which tells nested calls apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from karat.invariants.runtime.watching.heard import again, compiling, unheard
from karat.invariants.runtime.watching.loop import MANY, Forwards
from karat.invariants.runtime.watching.naming import compiled, parts, roots
from karat.invariants.runtime.watching.unsaved import Unsaved, after_forward, before_forward

Told = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


class Calls:
    """Hooks before and after the forwards of the model and of its parts; `told` hears of the outermost, when it is over."""

    def __init__(self, model: nn.Module, so_far: Forwards, told: Told) -> None:
        self._so_far, self._told, self._depth = so_far, told, 0
        self.alone = False
        """Whether it is one model, called itself, whose calls are not nested."""
        self._counts: dict[int, int] = {}
        whole = [module for _, module in roots(model)]
        self._stays = compiled(model)  # a hook that is taken off later makes it compile anew
        some = [] if self._stays or whole != [model] else [module for _, module in parts(model)]
        self._stays = self._stays or len(whole) > 1
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
            self._so_far.count += 1
            return
        self._counts[id(module)] = count = self._counts.get(id(module), 0) + 1
        self._so_far.count = max(self._so_far.count, count)

    def _alone(self) -> None:
        """The model itself was called in training, and not within a call of itself: nothing else tells of more."""
        for handle in (*self._parts, self._whole[0]):
            handle.remove()
        self._parts, self._whole, self._stays, self.alone = [], self._whole[1:], True, True

    def _hooked(self, module: nn.Module, *, of_model: bool) -> list[Unsaved]:
        so_far, grad_enabled, autocast_on = self._so_far, torch.is_grad_enabled, torch._C._is_any_autocast_enabled

        def before(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if not unheard():
                self._depth += 1

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            if compiling():  # before all else, so that compiled code hangs on nothing of the guards
                return
            if so_far.brief and of_model and grad_enabled() and module.training and not autocast_on():
                if output is not None and not again():
                    so_far.count += 1
                    so_far.untold += 1
                    so_far.call = module, args, kwargs, ()
                    so_far.brief = so_far.untold < MANY
                return
            if unheard() or not self._whole:  # taken off by a hook of the same call, torch gives it no kwargs any more
                return
            nested = self._depth > 1
            self._depth = max(0, self._depth - 1)
            if self._depth or output is None:  # inside another one, or the forward raised
                return
            if grad_enabled():
                self._count(module, of_model)
            elif not module.training:
                so_far.evaluated += 1
            self._told(module, args, kwargs, output)
            if of_model and not self._stays and module.training and grad_enabled():
                if nested:
                    self._stays = True
                else:
                    self._alone()

        if isinstance(module, torch.jit.ScriptModule):
            return []  # which takes no hooks
        return [before_forward(module, before), after_forward(module, after)]
