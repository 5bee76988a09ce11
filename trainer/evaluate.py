"""Bits per byte on the validation split: every byte but the first predicted once, nothing smoothed, no minimum taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from karat.trainer.data.batches import validation_windows
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.next_token import head_loss

EVALUATION_BATCH = 32


class Interrupted(Exception):
    """A signal asked the run to end; what was done is in a checkpoint."""


@dataclass(frozen=True)
class Validation:
    """The bytes that a run is judged on, and how to say which they are."""

    tokens: npt.NDArray[np.uint8]
    total: int

    @property
    def text(self) -> str:
        """`all 111,540 bytes of the validation split`, or which part."""
        if len(self.tokens) == self.total:
            return f"all {self.total:,} bytes of the validation split"
        return f"the first {len(self.tokens):,} of {self.total:,} bytes of the validation split"


def validation_part(tokens: npt.NDArray[np.uint8], limit: int | None) -> Validation:
    """The first `limit` bytes of the split, all of it when None or longer."""
    return Validation(tokens if limit is None else tokens[:limit], len(tokens))


@torch.no_grad()
def bits_per_byte(
    model: Transformer, validation: Validation, context: int, go_on: Callable[[], bool] = lambda: True
) -> float:
    """Mean negative log likelihood in bits per byte over the part; Interrupted when go_on() turns false."""
    nats, count = 0.0, 0
    model.eval()
    try:
        for inputs, targets in validation_windows(validation.tokens, context, EVALUATION_BATCH):
            if not go_on():
                raise Interrupted
            output = model(torch.from_numpy(inputs))
            loss = head_loss(output.hidden_BTD, output.head_VD, torch.from_numpy(targets))
            nats += float(loss) * targets.size
            count += targets.size
    finally:
        model.train()
    return nats / count / math.log(2)
