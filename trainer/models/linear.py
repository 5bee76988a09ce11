"""The matrices of a block, in the format that the configuration asks for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.gf16_linear import GF16Linear
from karat.trainer.models.ternary_linear import TernaryLinear

BlockLinear = GF16Linear | TernaryLinear
"""The maps between hidden states, whatever their format."""


def block_linear(config: ModelConfig, d_in: int, d_out: int, init_std: float, *, gf16: bool) -> BlockLinear:
    """A map (..., d_in) -> (..., d_out) without bias: ternary where configured, GF16 where `gf16`, float32 otherwise."""
    if config.ternary:
        return TernaryLinear(d_in, d_out, init_std=init_std)
    return GF16Linear(d_in, d_out, gf16=gf16, activations=gf16 and config.gf16_activations, init_std=init_std)


def by_definition(layer: BlockLinear, x: Tensor) -> Tensor:
    """What a block's matrix makes of x by the plain definition of its format: another path than its forward."""
    if isinstance(layer, TernaryLinear):
        return layer.by_definition(x)
    return F.linear(x, layer.stored_weight())
