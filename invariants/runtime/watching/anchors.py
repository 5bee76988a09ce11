"""One small parameter of an optimizer, followed by hooks of autograd from step to step: what was added to its gradient,
and onto what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from karat.invariants.runtime.watching.loop import Held
from karat.invariants.runtime.watching.naming import plain
from karat.invariants.runtime.watching.sampling import largest

_compiling = torch.compiler.is_dynamo_compiling


@dataclass(slots=True, weakref_slot=True)
class Anchor:
    """One parameter, and what its gradient went through since the last step of its optimizer.

    cleared: an accumulation began from no gradient. left: norms of what was there at the start of each accumulation that
    did not. repeats: differences between a gradient that is added and what was there. brought: the largest number of what
    was added, while it is `measured`: once a step applied nothing, and at turns. applied: what the last step applied.
    """

    name: str
    parameter: Tensor
    place: int
    handles: list[Any]
    backwards: int = 0
    cleared: bool = False
    first: bool = True
    left: list[Tensor] = field(default_factory=list)
    repeats: list[Tensor] = field(default_factory=list)
    brought: list[Tensor] = field(default_factory=list)
    measured: bool = False
    applied: tuple[int, float, int] | None = None
    calls: int = 0
    """Forwards of the module that has it, counted where the loop does not call the model as a whole."""

    def arrives(self, gradient: Tensor) -> None:
        """Before a gradient is added to the parameter's own."""
        held = self.parameter.grad
        if self.measured:
            self.brought.append(largest(gradient.detach()))
        if held is None:
            self.cleared = True
        elif not self.cleared or self.backwards == 1:
            self.left.append(torch.linalg.vector_norm(held.detach()))
            if self.backwards == 1:
                self.repeats.append(torch.linalg.vector_norm(held.detach() - gradient.detach()))

    def added(self, parameter: Tensor) -> None:
        """After it was added."""
        if not _compiling():
            self.backwards += 1

    def renew(self) -> None:
        """After a step."""
        self.backwards, self.cleared, self.first, self.calls = 0, False, False, 0
        self.left, self.repeats, self.brought = [], [], []


def split(
    numbers: list[float], sizes: tuple[int, int, int]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """The numbers of one anchor, three kinds, and the rest."""
    a, b, c = sizes[0], sizes[0] + sizes[1], sum(sizes)
    return numbers[:a], numbers[a:b], numbers[b:c], numbers[c:]


def fit(held: Held) -> bool:
    p = held.parameter
    if not (p.is_leaf and p.requires_grad) or torch.nn.parameter.is_lazy(p):
        return False
    return bool(p.numel()) and plain(p) and (p.grad is None or plain(p.grad))


def called(anchor: Anchor, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    if torch.is_grad_enabled():
        anchor.calls += 1


def before_added(anchor: Anchor, arrives: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """The hook for `Anchor.arrives`, in its usual case in the least time: a gradient that was cleared."""
    parameter = anchor.parameter

    def hook(gradient: Tensor) -> None:
        if _compiling():
            return
        if parameter.grad is None and not anchor.measured:
            anchor.cleared = True
            return
        with torch.no_grad():
            arrives(gradient)

    return hook
