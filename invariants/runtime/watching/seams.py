"""Where one submodule's output goes into another without its graph, in a loop that calls them itself.

Seen on the children of the model, or on the members of a list of models, in the first steps: an input that needs no
gradient, and holds the numbers of an output that was to have one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.captured import replaying
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.naming import unwrapped


@dataclass(frozen=True)
class Seam:
    """giver, taker: names of submodules; how: what the graph was lost by; before, after: ids of their parameters."""

    giver: str
    taker: str
    how: str
    before: frozenset[int]
    after: frozenset[int]


@dataclass
class _Given:
    name: str
    module: nn.Module
    output: weakref.ref[Tensor]
    storage: int
    shape: torch.Size
    graph: bool


class Seams:
    """Hooks on a few submodules for the first steps; what they note is dropped after each step."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._given: list[_Given] = []
        self._seams: list[Seam] = []

    def attach(self, loop: Loop) -> None:
        """Puts the hooks on, unless the model is compiled, for which a hook taken off later is another model."""
        if any(type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None
               for m in loop.model.modules()):  # fmt: skip
            return
        for name, module in _parts(unwrapped(loop.model)):
            self._handles.append(module.register_forward_pre_hook(self._taken(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._gave(name)))

    def found(self) -> list[Seam]:
        """Of this step."""
        return list(self._seams)

    def renew(self, loop: Loop) -> None:
        """After a step: nothing is kept; after the first steps the hooks are taken off."""
        self._given, self._seams = [], []
        if self._handles and loop.step + 1 >= DENSE:
            self.drop()

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._given, self._seams = [], [], []

    def _gave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if replaying():
                return
            for _, t in leaves(output):
                if t.is_floating_point():
                    self._given.append(
                        _Given(name, module, weakref.ref(t), _storage(t), t.shape, t.requires_grad)
                    )

        return hook

    def _taken(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if replaying() or not torch.is_grad_enabled():
                return
            for _, t in leaves((args, kwargs)):
                if t.is_floating_point() and not t.requires_grad:
                    self._seams += [
                        Seam(g.name, name, "detached" if g.graph else "made under no_grad",
                             _ids(g.module), _ids(module))
                        for g in self._given if g.module is not module and _same(g, t)
                    ]  # fmt: skip

        return hook


def _same(given: _Given, taken: Tensor) -> bool:
    """Whether an input is an output without its graph: the same memory, or the same numbers in the same shape."""
    output = given.output()
    if output is not None and _storage(taken) == given.storage:
        return True
    return output is not None and output.shape == taken.shape and torch.equal(output.detach(), taken)


def _ids(module: nn.Module) -> frozenset[int]:
    return frozenset(id(p) for p in module.parameters())


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else 0


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children, and those of children that only hold others."""
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from ((f"{name}.{inner}", module) for inner, module in _parts(child))
        else:
            yield name, child
