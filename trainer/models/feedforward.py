"""The feed-forward sublayer: ReLU² (two matrices) or SwiGLU (three), stored in GF16 when asked."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.gf16_linear import GF16Linear
from karat.trainer.models.normalization import INPUT_STD


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
        input_std = INPUT_STD / math.sqrt(d)
        depth_scale = 1 / math.sqrt(2 * config.n_layers)
        self.gate = (
            GF16Linear(d, width, gf16=config.gf16, init_std=input_std) if config.activation == "swiglu" else None
        )
        self.up = GF16Linear(d, width, gf16=config.gf16, init_std=input_std)
        self.down = GF16Linear(width, d, gf16=config.gf16, init_std=depth_scale / math.sqrt(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = squared_relu(self.up(x_BTD)) if self.gate is None else F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        mapped: Tensor = self.down(hidden)
        return mapped
