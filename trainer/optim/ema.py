"""The exponential moving average of the weights: one update after each optimizer step, in the weights' own precision.

The update is torch's lerp, held to the hull of the old average and the weight by minimum and maximum: the proved
formula `ema.averaged`, without its temporaries. At a declared interval the averages are compared with a hull that is
computed apart from the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from karat.core.errors import CheckpointError

ROUNDING = 1e-6
"""Relative: some ten times what float32 loses in one update."""


class WeightAverage:
    """The averages of named weights, which start as copies of them. decay(step): the declared decay.

    used, previous: the decays of the last update and of the one before it; None and `first` before the first update.
    outside: how far averages were outside their hull at the last update, one number per weight, zeros where the
    update was not compared.
    """

    def __init__(
        self, weights: Iterable[tuple[str, Tensor]], decay: Callable[[int], float], *, every: int, first: float
    ) -> None:
        self._weights = {name: weight.detach() for name, weight in weights}
        self.averages = {name: weight.clone() for name, weight in self._weights.items()}
        self._scratch = {name: (torch.empty_like(w), torch.empty_like(w)) for name, w in self._weights.items()}
        self.decay, self.every = decay, every
        self.used: float | None = None
        self.previous = first
        self.outside = torch.zeros(1)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves every average towards its weight; call it after optimizer step number `step`."""
        decay = self.decay(step)
        compared = step % self.every == 0
        before = {name: average.clone() for name, average in self.averages.items()} if compared else {}
        for name, average in self.averages.items():
            self.move(average, self._weights[name], decay, *self._scratch[name])
        self.previous = self.previous if self.used is None else self.used
        self.used = decay
        self.outside = self._excess(before, decay) if compared else torch.zeros(1)

    def move(self, average: Tensor, weight: Tensor, decay: float, low: Tensor, high: Tensor) -> None:
        """`ema.averaged` in place; low and high are scratch of the weight's shape."""
        torch.minimum(average, weight, out=low)
        torch.maximum(average, weight, out=high)
        average.lerp_(weight, 1 - decay)
        torch.minimum(average, high, out=average)
        torch.maximum(average, low, out=average)

    def _excess(self, before: Mapping[str, Tensor], decay: float) -> Tensor:
        """The most that an element of each average is outside the hull of what it was and the weight, or further from
        decay · old + (1 - decay) · weight than float32 rounds; NaN stays NaN."""
        worst = []
        for name, old in before.items():
            now, weight = self.averages[name], self._weights[name]
            above = now - torch.maximum(old, weight)
            below = torch.minimum(old, weight) - now
            off = (now - (old + (weight - old) * (1 - decay))).abs() - ROUNDING * (old.abs() + weight.abs())
            worst.append(torch.maximum(torch.maximum(above, below), off).amax())
        return torch.stack(worst).clamp_min(0.0)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Within it the model's weights are the averages; afterwards they are bit for bit what they were."""
        kept = {name: weight.clone() for name, weight in self._weights.items()}
        try:
            self._copy(self.averages, self._weights)
            yield
        finally:
            self._copy(kept, self._weights)

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; tensors are not copied."""
        return {"averages": dict(self.averages), "used": self.used, "previous": self.previous, "outside": self.outside}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint, bit for bit; CheckpointError, and no change, when it is of other weights."""
        saved = state["averages"]
        ours = {name: (tensor.dtype, tensor.shape) for name, tensor in self.averages.items()}
        theirs = {name: (tensor.dtype, tensor.shape) for name, tensor in saved.items()}
        if ours != theirs:
            odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise CheckpointError(f"the averaged weights are of another model: {', '.join(odd[:8])}")
        self._copy(saved, self.averages)
        self.used, self.previous, self.outside = state["used"], state["previous"], state["outside"]
