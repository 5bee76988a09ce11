"""Whether what a step's loss is made of depends on parameters: they are moved, and the kept forward is run again.

The loss itself is not known; but its gradient at the outputs is. Multiplied with the change of the outputs it gives the
change of the loss to first order, whatever the loss is.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.keep import seed_all
from karat.invariants.runtime.preflight.trees import Path, leaves
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.graph import Walk, is_step, walk
from karat.invariants.runtime.watching.interrupts import passing
from karat.invariants.runtime.watching.naming import local

SLIGHT = 0.05
"""Noise on a parameter over its root mean square."""
STRONG = 1.0
FEWER = 16.0
"""By how much the smaller of two moves is smaller."""
MOST_COPIED = 1 << 22
"""Elements of a parameter that are moved and put back; of a larger one so many, evenly spread."""
COARSE = 1e-4
"""Precision of the outputs beyond which jumps and slopes cannot be told apart."""
LEAST = 1e-2
"""What is moved at least, where a parameter is zero."""


@dataclass(frozen=True)
class Change:
    """What a move did: the change of the loss to first order, the rounding it must exceed, the size of all changes."""

    loss: float
    noise: float
    size: float

    @property
    def real(self) -> bool:
        """Whether the loss depends on what was moved."""
        return math.isfinite(self.loss) and abs(self.loss) > self.noise


@dataclass(frozen=True)
class Routes:
    """every: all that the outputs reach by autograd; smooth: all that they reach not going through rounding and signs;
    without: ids of parameters whose module ran under no_grad, not counting reentrant checkpointing."""

    every: Walk
    smooth: Walk
    without: frozenset[int]


class Probe:
    """The kept forward, ready to be run again; to be used inside `captured.undisturbed()`."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._gradients = {p: g for p, g in captured.gradients.items() if bool(g.any())}
        self._base = captured.again()
        self._steady = self._same(self._run())

    def _run(self) -> dict[Path, Tensor]:
        self._captured.rewind()
        return self._captured.again()

    def _same(self, outputs: Mapping[Path, Tensor]) -> bool:
        """Whether a forward gave what the first one did, but for rounding: else it hangs on something that is not kept."""
        return all(
            (after := outputs.get(path)) is not None and after.shape == before.shape
            and torch.allclose(after.float(), before.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
            for path, before in self._base.items()
        )  # fmt: skip

    @property
    def steady(self) -> bool:
        """Whether every forward that was to be the same was, the one that is run now among them."""
        self._steady = self._steady and self._same(self._run())
        return self._steady

    @property
    def able(self) -> bool:
        """Whether a gradient came back to an output, and the forward run again gives outputs of the same shapes."""
        return (
            self._steady
            and bool(self._gradients)
            and all(path in self._base and self._base[path].shape == g.shape for path, g in self._gradients.items())
        )

    def change(self, parameters: Sequence[Tensor], scale: float) -> Change:
        """What happens when parameters are moved by noise of `scale` times their size."""
        with moved(parameters, scale):
            outputs = self._run()
        loss, size, squares = 0.0, 0.0, 0.0
        for path, gradient in self._gradients.items():
            before, after = self._base[path], outputs.get(path)
            if after is None or after.shape != before.shape:
                return Change(math.nan, 0.0, 0.0)
            g, difference = gradient.double(), after.double() - before.double()
            loss += float((g * difference).sum())
            size += float((difference * (g != 0)).square().sum())
            squares += (torch.finfo(before.dtype).eps * float((g * before.double()).norm())) ** 2
        return Change(loss, 32 * math.sqrt(squares), math.sqrt(size))

    def smooth(self, parameters: Sequence[Tensor], scale: float) -> bool:
        """Whether moves by less change the outputs by as much less or still less, as they do where there is a derivative:
        jumps that grow rarer go down with the root only, or to nothing."""
        if any(torch.finfo(self._base[path].dtype).eps > COARSE for path in self._gradients):
            return True  # moves that are small enough are rounded away
        sizes = [self.change(parameters, scale / FEWER**k).size for k in range(3)]
        return all(0 < 0.5 * FEWER * narrow < wide for wide, narrow in itertools.pairwise(sizes))

    def routes(self, silent: Mapping[str, Tensor]) -> Routes:
        """The graph of those outputs that got a gradient; and which of the parameters a module used under no_grad."""
        meant = {id(p) for p in silent.values()}
        without: set[int] = set()
        self._captured.rewind()  # before the hooks, which it would take off again
        handles = [
            module.register_forward_hook(partial(_note_mode, [i for p in own if (i := id(p)) in meant], without))
            for module in self._captured.module.modules()
            if (own := list(module.parameters(recurse=False)))
        ]
        try:
            outputs = self._with_graph()
        finally:
            for handle in handles:
                handle.remove()
        return Routes(walk(outputs), walk(outputs, is_step), frozenset(without))

    def _with_graph(self) -> list[Tensor]:
        captured = self._captured
        seed_all(0)
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            for device, dtype in captured.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            outputs = dict(leaves(passing(lambda: captured.module(*captured.args, **captured.kwargs))))
        self._steady = self._steady and self._same({path: t.detach() for path, t in outputs.items()})
        return [outputs[path] for path in self._gradients if path in outputs]


def checkpointed() -> bool:
    """Whether reentrant checkpointing, which runs its function with gradients off, is on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("checkpoint.py") and frame.f_code.co_name == "forward":
            return True
        frame = frame.f_back
    return False


def _note_mode(ids: list[int], without: set[int], module: nn.Module, args: object, output: object) -> None:
    if ids and not torch.is_grad_enabled() and not checkpointed():
        without.update(ids)


@contextlib.contextmanager
def moved(parameters: Sequence[Tensor], scale: float) -> Iterator[None]:
    """Parameters with noise on them, from a generator of its own; put back bit for bit. No version counter moves."""
    generator = torch.Generator().manual_seed(2)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for parameter in parameters:
            numbers = _some_of(local(parameter.data))
            kept.append((numbers, numbers.clone()))
            size = max(float(numbers.float().square().mean().sqrt()), LEAST) * scale if numbers.numel() else 0.0
            noise = torch.randn(numbers.shape, generator=generator) * size
            numbers.add_(noise.to(numbers.device, numbers.dtype))
        yield
    finally:
        for numbers, bits in reversed(kept):
            numbers.copy_(bits)


def _some_of(numbers: Tensor) -> Tensor:
    """The numbers themselves, or of very many an even selection, as a view."""
    if numbers.numel() <= MOST_COPIED or not numbers.is_contiguous():
        return numbers
    return numbers.view(-1)[:: math.ceil(numbers.numel() / MOST_COPIED)]
