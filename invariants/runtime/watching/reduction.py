"""The norms of the gradients at a step: one fused reduction over those that are due, for all checks together.

Small models are looked at whole. Of larger ones an eighth, but at least LEAST_NUMBERS and at most MOST_NUMBERS elements, of
A_TURN gradients are looked at in a step, in turn: in the steps that run/cadence.py names. Between them it is the first small
one, for what is not finite spreads upstream in a backward, and those that RUN-11 follows. In the first steps, every K, and
when a limit on the whole norm was declared, all of them are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from karat.invariants.run.cadence import turn
from karat.invariants.runtime.watching.naming import local, plain

LEAST_NUMBERS, MOST_NUMBERS = 1 << 14, 1 << 19
"""Elements a step, at least and at most: 64 KiB of float32, and 2 MiB, about 0.1 ms on one core."""
MOST_TENSORS = 32
"""Gradients of a small model: about 2.5 us each on a CPU."""
A_TURN = 16
"""Gradients a step of a larger one."""
SMALL = 1 << 12


class Turns:
    """Which gradients of one optimizer are looked at in which step: runs of neighbours that fit into the limits, and
    always the first small one."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.most = min(max(sum(sizes) // 8, LEAST_NUMBERS), MOST_NUMBERS)
        self.whole = len(sizes) <= MOST_TENSORS and sum(sizes) <= LEAST_NUMBERS
        first = next((place for place, size in enumerate(sizes) if 0 < size <= SMALL), None)
        self.first = [] if first is None else [first]
        self.runs: list[list[int]] = [[]]
        numbers = 0
        for place, size in enumerate(sizes):
            if self.runs[-1] and (numbers + size > self.most or len(self.runs[-1]) >= A_TURN - 1):
                self.runs.append([])
                numbers = 0
            self.runs[-1].append(place)
            numbers += size
        if self.whole:
            self.runs = [list(range(len(sizes)))]

    def __len__(self) -> int:
        return len(self.runs)

    def due(self, step: int) -> list[int]:
        """The places that are looked at in a step."""
        return self.runs[turn(step) % len(self.runs)]


def part(tensor: Tensor, step: int, most: int) -> Tensor:
    """A tensor, or of one that is too large the run of elements whose turn it is."""
    if tensor.numel() <= most or not tensor.is_contiguous():
        return tensor
    count = math.ceil(tensor.numel() / most)
    start = (turn(step) % count) * most
    return tensor.view(-1)[start : start + most]


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The 2-norms, as 0-d tensors, in float32 or wider. An overflow gives infinity, an underflow 0: both are to be
    looked at again by `is_finite` and `is_zero` before anything is said."""
    ready = [t if plain(t) else local(t) for t in tensors]
    full = [t for t in ready if t.numel()]
    found = iter(
        torch._foreach_norm(full) if _wide(full) else [torch.linalg.vector_norm(t, dtype=_dtype(t)) for t in full]
    )
    return [next(found) if t.numel() else torch.zeros(()) for t in ready]


def uniform(parameters: Iterable[Tensor]) -> bool:
    """Whether `norms_of_uniform` does for their gradients: float32, of one device, none empty, none of a subclass."""
    listed = list(parameters)
    plainly = all(t.dtype is torch.float32 and t.numel() and not hasattr(t, "to_local") for t in listed)
    return plainly and len({t.device for t in listed}) == 1


def norms_of_uniform(tensors: list[Tensor]) -> list[Tensor]:
    """As `norms`, for gradients of parameters that are `uniform`; a sparse one takes the long way."""
    try:
        return list(torch._foreach_norm(tensors))
    except (RuntimeError, NotImplementedError):
        return norms(tensors)


def squares_of_few(tensors: list[Tensor]) -> list[Tensor] | None:
    """The squares of the 2-norms of vectors that are uniform, each by one product; None where they are no such vectors."""
    if all(t.dim() == 1 and t.layout is torch.strided for t in tensors):
        return [torch.dot(t, t) for t in tensors]
    return None


def _wide(tensors: list[Tensor]) -> bool:
    return all(t.dtype is torch.float32 for t in tensors) and len({t.device for t in tensors}) <= 1


def _dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype is torch.float64 else torch.float32


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite: exact, in a pass of its own."""
    numbers = local(tensor)
    if numbers.is_meta:
        return True  # there are no numbers
    if numbers.is_floating_point() and numbers.element_size() == 1:
        numbers = numbers.float()  # float8 has no isfinite of its own
    return bool(numbers.isfinite().all())


def is_zero(tensor: Tensor) -> bool:
    """Whether every number is zero: exact, in a pass of its own."""
    return not bool(local(tensor).any())
