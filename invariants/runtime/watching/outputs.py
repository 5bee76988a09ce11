"""How the outputs of a batch differ between its samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from karat.invariants.runtime.preflight.trees import Path, leaves
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.reading import MOST, part, tolerance

SURE = 0.999
LEAST_SURE = 16
ANGLE = 8
"""Units in the last place by which a gradient that is at right angles to its row may be off them."""


@dataclass(frozen=True)
class Spread:
    """equal: to rounding. typical: root mean square, over features, of the deviation over samples. size: the largest output."""

    equal: bool
    typical: float
    size: float


def spread_of(output: Tensor, most: int = MOST) -> Spread:
    """Over the samples of an output (B, …), of so many elements; of all that `part` has, before they are called equal."""
    if most < output.numel() and output.ndim > 1:
        x = output.detach().flatten(1)
        seen = _spread(x[:, :: -(-x.numel() // most)].float(), output.dtype)
        if not seen.equal:
            return seen
    x = part(output).detach().float()
    return _spread(x.reshape(len(x), -1), output.dtype)


def _spread(x: Tensor, dtype: torch.dtype) -> Spread:
    size, largest = float(x.abs().max()), float((x - x[:1]).abs().max())
    off = x - x.mean(0)
    typical = (
        math.sqrt(float(off.square_().sum()) / off[0].numel() / (len(x) - 1)) if len(x) > 1 and off.numel() else 0.0
    )
    return Spread(largest <= 4 * torch.finfo(dtype).eps * size, typical, size)


def turned(output: Tensor, gradient: Tensor, most: int = MOST) -> float | None:
    """The spread of the directions of the outputs; None where the loss is not of directions alone, that is, where the
    gradient of a row is not at right angles to the row."""
    if output.ndim < 2 or output.shape != gradient.shape:
        return None
    x, g = part(output, most).detach().double().flatten(1), part(gradient, most).detach().double().flatten(1)
    sizes, slopes = x.norm(dim=1), g.norm(dim=1)
    if (
        x.shape[1] < 2
        or not bool((sizes > 0).all() & sizes.isfinite().all() & slopes.isfinite().all())
        or float(slopes.max()) == 0
    ):
        return None
    along = (x * g).sum(1).abs() / sizes
    rough = max(ANGLE * torch.finfo(output.dtype).eps, 1e-4)
    if float(along.max()) > rough * float(slopes.max()):
        return None
    return _of_directions(x)


def directions(output: Tensor, most: int = MOST) -> float | None:
    """The root mean square deviation over samples of the directions of the outputs, 1 where they are even; None where some
    have none."""
    if output.ndim < 2:
        return None
    x = part(output, most).detach().double().flatten(1)
    return _of_directions(x) if x.shape[1] > 1 and bool(x.any(1).all()) else None


def _of_directions(x: Tensor) -> float:
    one = x / x.norm(dim=1, keepdim=True)
    return float((one - one.mean(0)).square().sum(1).mean().sqrt())


def differ(captured: Captured, size: int) -> bool:
    """Whether the samples of the batch differ in some input."""
    for _, t in leaves((captured.args, captured.kwargs)):
        if t.ndim and t.shape[0] == size and t.dtype is not torch.bool and bool((t != t[:1]).any()):
            return True
    return False


def of_softmax(captured: Captured, path: Path) -> bool:
    """Whether the loss takes a softmax of an output: its gradient sums to zero in every row, as none of directions does."""
    if path in captured.readings:
        return True
    x, g = captured.outputs[path], captured.gradients[path]
    if g.ndim < 2 or g.shape[-1] < 3:
        return False
    rows = part(g, captured.most).double()
    largest = float(rows.abs().max())
    return largest > 0 and float(rows.sum(-1).abs().max()) <= 10 * tolerance(x.dtype) * largest


def certain(captured: Captured, path: Path) -> int | None:
    """The one class that has all the probability in every row, of outputs of which the loss takes a softmax.

    Where the targets are known they have to be several; else the gradient tells that it is a softmax: it sums to zero.
    """
    reading = captured.readings.get(path)
    if reading is not None:
        p, several = reading.probabilities, len(torch.unique(reading.targets[reading.counts])) > 1
    else:
        x, g = captured.outputs[path], captured.gradients.get(path)
        if g is None or x.ndim < 2 or x.shape[-1] < 3 or g.shape != x.shape:
            return None
        g = part(g, captured.most).double()
        if not bool(g.any()) or float(g.sum(-1).abs().max()) > 10 * tolerance(x.dtype) * float(g.abs().max()):
            return None
        p, several = part(x, captured.most).double().softmax(-1), x.shape[0] >= LEAST_SURE
    if not several or float(p.amax(-1).min()) < SURE:
        return None
    classes = torch.unique(p.argmax(-1))
    return int(classes[0]) if len(classes) == 1 else None
