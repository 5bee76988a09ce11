"""The feed-forward sublayer: ReLU² or GELU (two matrices), or SwiGLU (three), in the format that is asked for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.linear import block_linear
from karat.trainer.models.starts import start_of


class _SquaredReLU(torch.autograd.Function):
    """max(x, 0)², gradient 2 max(x, 0): two passes over the tensor fewer than relu, then square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(gradients[0], positive).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², element by element. So et al. 2021, Primer, arXiv 2109.08668."""
    y: Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    return y


class FeedForward(nn.Module):
    """(B, T, d_model) -> (B, T, d_model) through `feedforward_width` units; no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, width = config.d_model, config.feedforward_width
        start, gf16 = start_of(config), config.gf16
        self.gelu = config.activation == "gelu"
        self.gate = block_linear(config, d, width, start.inputs, gf16=gf16) if config.activation == "swiglu" else None
        self.up = block_linear(config, d, width, start.inputs, gf16=gf16)
        self.down = block_linear(config, width, d, start.feedforward_output, gf16=gf16)

    def forward(self, x_BTD: Tensor) -> Tensor:
        mapped: Tensor = self.down(self.hidden(x_BTD))
        return mapped

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """The activations of the hidden units, (B, T, feedforward_width)."""
        up: Tensor = self.up(x_BTD)
        if self.gate is not None:
            return F.silu(self.gate(x_BTD)) * up
        return F.gelu(up) if self.gelu else squared_relu(up)
