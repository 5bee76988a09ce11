"""Whether the losses of the batches of one step are means that are added up undivided, told from the losses that are logged.

A tensor tells by its graph that it is a bare mean, and by its own gradient the factor by which it went backward. Of a number
L and a mean square error the gradient g at the N outputs tells it: weighed by w, N |g|^2 / 4 is w^2 times the mean; so that
over L it is 1 where L is the mean and w is 1, and 1 / n or 1 / n^2 where either was divided by n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

LOSSES = (
    "MseLoss", "NllLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "SoftMarginLoss", "MultiMarginLoss",
    "MultilabelMarginLoss", "CtcLoss",
)  # fmt: skip
"""Nodes of functions of a loss, which know how they reduce."""
MEAN = 1
"""Of a node's reduction."""
ELEMENTS = ("Pow", "Abs", "Square")
"""Nodes of numbers that nothing was multiplied to since: their mean is a bare one."""
DEPTH = 16
NEAR = 2e-3
IN_A_ROW = 2


def bare(node: Any, depth: int = 0) -> bool:
    """Whether a loss is a mean as it is, or a sum of terms of which one is, and that one of a function of a loss."""
    name = type(node).__name__
    if name.startswith(LOSSES):
        return bool(getattr(node, "_saved_reduction", None) == MEAN)
    below = [n for n, _ in getattr(node, "next_functions", ()) if n is not None]
    if name.startswith("MeanBackward"):
        return depth == 0 and len(below) == 1 and type(below[0]).__name__.startswith(ELEMENTS)
    return name.startswith("AddBackward") and depth < DEPTH and any(bare(n, depth + 1) for n in below)


@dataclass
class Undivided:
    """Of the step under way. losses: as they were logged, detached; squares: N |g|^2 / 4 of each forward; before: those of
    the last step, which logged no loss until it was over."""

    losses: list[Any] = field(default_factory=list)
    means: list[bool] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    squares: list[float | None] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    seen: int = 0
    """Steps in a row of which a single loss tells it."""

    def log(self, loss: Any, safe: Callable[..., Any]) -> None:
        """A loss of this step."""
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                return
            if loss.requires_grad:
                self.means.append(bare(loss.grad_fn))
                self.handles.append(loss.register_hook(safe(self._weighed)))  # type: ignore[no-untyped-call]
            self.losses.append(loss.detach())
        elif isinstance(loss, (int, float)):
            self.losses.append(loss)

    def _weighed(self, gradient: Tensor) -> None:
        self.factors.append(float(gradient))

    def follow(self, output: Tensor, safe: Callable[..., Any], batches: int) -> None:
        """The main output of a forward of this step."""
        self.before = []
        place = len(self.squares)
        self.squares.append(None)
        if output.numel() != batches * len(output):  # a sum over so many numbers of a sample, divided, is their mean
            self.handles.append(output.register_hook(safe(partial(self._squared, place))))  # type: ignore[no-untyped-call]

    def _squared(self, place: int, gradient: Tensor) -> None:
        self.squares[place] = gradient.numel() * float(gradient.detach().double().square().sum()) / 4

    def found(self, batches: int, scale: float) -> str:
        """What tells that the losses of so many batches are undivided; "" where nothing does."""
        if self.factors:
            whole = len(self.means) == batches == len(self.factors) and all(self.means)
            if whole and all(abs(factor / scale - 1) <= NEAR for factor in self.factors):
                return f"each of the {batches} logged losses is a mean, and went backward with the factor 1"
        squares = [q / scale**2 for q in self.squares if q is not None]
        if len(squares) != batches or len(self.squares) != batches:
            return ""
        losses = [float(loss) for loss in self.losses]
        if len(losses) == batches:
            if all(loss > 0 and abs(q / loss - 1) <= NEAR for q, loss in zip(squares, losses, strict=True)):
                return "the gradient at the outputs is that of the logged mean square error, undivided, in each batch"
        elif losses:
            return self._of_one(squares, losses[-1])
        else:
            self.before = squares
        return ""

    def late(self, loss: Any) -> tuple[str, int]:
        """What a loss tells that is logged after its step, and the number of its batches."""
        squares, self.before = self.before, []
        alone = isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1)
        return (self._of_one(squares, float(loss)) if alone else ""), len(squares)

    def _of_one(self, squares: list[float], loss: float) -> str:
        """The one loss of a step is the sum or the mean of those of its batches."""
        ratio = sum(squares) / loss if loss > 0 else math.nan
        self.seen = self.seen + 1 if min(abs(ratio - 1), abs(ratio / len(squares) - 1)) <= NEAR else 0
        enough = self.seen >= IN_A_ROW
        return (
            f"the gradients at the outputs are those of {len(squares)} undivided mean square errors" if enough else ""
        )

    def end(self) -> None:
        """After the step."""
        for handle in self.handles:
            handle.remove()
        self.losses, self.means, self.factors, self.squares, self.handles = [], [], [], [], []
