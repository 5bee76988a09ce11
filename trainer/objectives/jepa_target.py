"""The target encoder: a frozen copy of the online one that follows it as an exponential moving average.

Its update is `WeightAverage`'s, so the decay is the proved `ema.decay_at` and INV-6's probe reads the same numbers off
it: `used`, `previous`, `outside`. Its weights want no gradient, so no optimizer takes them; they and these numbers are
in the state_dict, so a resumed run goes on bit for bit. Source: Grill et al. 2020, arXiv 2006.07733 (BYOL). The seed
read its decay and never advanced the step behind it, and averaged the embedding alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from karat.trainer.models.transformer import Transformer
from karat.trainer.optim.ema import WeightAverage


class TargetEncoder(nn.Module):
    """Starts equal to `online`. decay(step): the declared decay; first: the decay before the first update.

    The online weights are known by their memory: build it after the model is on its device and in its dtype, and
    neither move nor deep-copy the two afterwards (`require_follows` says so).
    """

    last_update_3: Tensor

    def __init__(self, online: Transformer, decay: Callable[[int], float], *, every: int, first: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(online).requires_grad_(False).eval()
        self._online = {name: weight.detach() for name, weight in online.named_parameters()}
        self._average = WeightAverage(self._online.items(), decay, every=every, first=first)
        self._average.averages = {name: weight.detach() for name, weight in self.encoder.named_parameters()}
        numbers = torch.tensor([math.nan, first, 0.0], dtype=torch.float64)
        self.register_buffer("last_update_3", numbers)  # decay, the one before it, worst distance from the hull

    def train(self, mode: bool = True) -> Self:
        """The copy stays in eval mode: what it says of a text does not depend on dropout."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D): the copy's features of the whole text, nothing masked; no gradient."""
        hidden: Tensor = self.encoder(tokens_BT).hidden_BTD
        return hidden

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Moves every weight towards the online one; call it after optimizer step number `step` (from 0)."""
        average = self._average
        average.used, average.previous = self.used, self.previous  # a checkpoint may have been loaded since
        average.update(step)
        numbers = [math.nan if average.used is None else average.used, average.previous, float(average.outside.amax())]
        self.last_update_3.copy_(torch.tensor(numbers, dtype=torch.float64))

    @property
    def used(self) -> float | None:
        """The decay of the last update; None before the first."""
        decay = float(self.last_update_3[0])
        return None if math.isnan(decay) else decay

    @property
    def previous(self) -> float:
        """The decay of the update before it."""
        return float(self.last_update_3[1])

    @property
    def outside(self) -> Tensor:
        """(1,): how far an average was outside its hull at the last update, the worst; 0 where it was not compared."""
        return self.last_update_3[2:]

    def require_follows(self, online: nn.Module) -> None:
        """ValueError when `online` is not the model whose weights this target follows, in their place."""
        places = {name: weight.data_ptr() for name, weight in online.named_parameters()}
        ours = {name: weight.data_ptr() for name, weight in self._online.items()}
        copies = {name: weight.data_ptr() for name, weight in self.encoder.named_parameters()}
        averages = {name: weight.data_ptr() for name, weight in self._average.averages.items()}
        if places != ours or copies != averages:
            raise ValueError(
                "the target follows other weights than those of the model that was given: one of them was moved, "
                "converted or copied since; make JepaObjective after the model is in its place"
            )
