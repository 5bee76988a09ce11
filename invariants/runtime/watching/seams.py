"""Where one submodule's output goes into another without its graph, in a loop that calls them itself.

Seen on the children of the model, or on the members of a list of models, in the first steps: an input that needs no
gradient, and holds the numbers of an output that was to have one; or one whose graph leads to it only through rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.graph import is_step, walk
from karat.invariants.runtime.watching.heard import harmless, unheard
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.naming import compiled, parts, unwrapped
from karat.invariants.runtime.watching.probing import checkpointed
from karat.invariants.runtime.watching.unsaved import after_forward, before_forward

MOST_CALLS = 64
"""Forwards of parts that are noted in a step: a recurrent loop makes thousands, and each is compared with those before."""


@dataclass(frozen=True)
class Seam:
    """giver, taker: names of submodules; how: what the graph was lost by; meant: whether that is done on purpose, too;
    before, after: ids of their parameters."""

    giver: str
    taker: str
    how: str
    meant: bool
    before: frozenset[int]
    after: frozenset[int]


@dataclass
class _Given:
    name: str
    module: nn.Module
    output: Tensor
    how: str
    meant: bool


class Seams:
    """Hooks on a few submodules for the first steps; what they note is dropped after each step."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._given: list[_Given] = []
        self._seams: list[Seam] = []
        self._inputs: list[tuple[str, nn.Module, Tensor]] = []
        self._calls = 0

    def attach(self, loop: Loop, check: Check) -> None:
        """Puts the hooks on, unless the model is compiled."""
        if compiled(loop.model):
            return
        for name, module in parts(unwrapped(loop.model)):
            self._handles.append(before_forward(module, harmless(loop, check, self._taken(name))))
            self._handles.append(after_forward(module, harmless(loop, check, self._gave(name))))

    @property
    def attached(self) -> bool:
        """Whether hooks are on."""
        return bool(self._handles)

    def found(self) -> list[Seam]:
        """Of this step."""
        return list(self._seams)

    def rounded(self, silent: Mapping[str, Tensor], trained: set[int]) -> tuple[dict[str, Tensor], str]:
        """Silent parameters that the inputs of submodules which are trained reach through rounding and signs alone; and
        through which."""
        inputs = [t for _, module, t in self._inputs if trained & _ids(module)]
        every, smooth = walk(inputs), walk(inputs, is_step)
        lost = {n: p for n, p in silent.items() if id(p) in every.leaves and id(p) not in smooth.leaves}
        return (lost if smooth.certain else {}), every.steps

    def renew(self, loop: Loop) -> None:
        """After a step: nothing is kept; after the first steps the hooks are taken off."""
        self.forget()
        if self._handles and loop.step + 1 >= DENSE:
            self.drop()

    def forget(self) -> None:
        """Keeps nothing of the step."""
        self._given, self._seams, self._inputs, self._calls = [], [], [], 0

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._given, self._seams, self._inputs = [], [], [], []

    def _gave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if unheard() or self._calls > MOST_CALLS:
                return
            on = torch.is_grad_enabled()
            inside = not on and checkpointed()
            for _, t in leaves(output):
                if t.is_floating_point():
                    how = "detached" if on else (
                        "without a graph: reentrant checkpointing of inputs that need no gradient"
                        if inside else "made under no_grad"
                    )  # fmt: skip
                    self._given.append(_Given(name, module, t.detach(), how, not (on or inside)))

        return hook

    def _taken(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if unheard() or not torch.is_grad_enabled():
                return
            self._calls += 1
            if self._calls > MOST_CALLS:
                return
            for _, t in leaves((args, kwargs)):
                if not t.is_floating_point():
                    continue
                if t.requires_grad:
                    self._inputs.append((name, module, t))
                    continue
                self._seams += [
                    Seam(g.name, name, g.how, g.meant, _ids(g.module), _ids(module))
                    for g in self._given if g.module is not module and _same(g.output, t)
                ]  # fmt: skip

        return hook


def _same(output: Tensor, taken: Tensor) -> bool:
    """Whether an input is an output without its graph: the same memory, or the same numbers in the same shape."""
    if output.layout is not torch.strided or taken.layout is not torch.strided:
        return False
    if taken.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
        return bool(taken.numel())
    return output.shape == taken.shape and output.device == taken.device and torch.equal(output, taken)


def _ids(module: nn.Module) -> frozenset[int]:
    return frozenset(id(p) for p in module.parameters())
