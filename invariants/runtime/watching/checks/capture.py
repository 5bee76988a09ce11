"""Keeps the forward of a step for the checks that look at it: in the first steps, every K, and when one asks for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.trees import Path, leaves
from karat.invariants.runtime.watching.captured import Captured, autocast_now, floating
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import callable_modules, unwrapped
from karat.invariants.runtime.watching.reading import MOST, MOST_LATER


class Capture(Check):
    """No rule of its own. The forward is let go after its step."""

    of_forward = True

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._names: dict[int, str] = {}

    def start(self, loop: Loop) -> None:
        self._names = {id(module): name for name, module in callable_modules(loop.model)}

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if loop.captured is not None or not torch.is_grad_enabled():
            return
        inner = unwrapped(module)
        captured = Captured(
            self._names.get(id(module), ""), inner, args, kwargs, floating(output), module.training, autocast_now()
        )
        for path, tensor in leaves(output):
            if tensor.requires_grad and tensor.is_floating_point():
                self._handles.append(tensor.register_hook(harmless(loop, self, partial(_arrived, captured, path))))  # type: ignore[no-untyped-call]
        captured.most = MOST if loop.dense(loop.step) else MOST_LATER
        loop.captured, loop.capture_next = captured, False

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if loop.captured is not None:
            self.drop()
            loop.captured.let_go()
            loop.captured = None

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _arrived(captured: Captured, path: Path, gradient: Tensor) -> None:
    """Adds a gradient to what came back to an output; several losses may send theirs."""
    held = captured.gradients.get(path)
    captured.gradients[path] = gradient.detach() if held is None else held + gradient.detach()
