"""Causal self-attention, rotary positions, a declared gain: scores = gain · q.k / sqrt(head_dim)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.formulas import attention
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.normalization import INPUT_STD

SAMPLED = 8
"""How many positions of the first sequence of a batch a guard may look at."""


class Sample(NamedTuple):
    """One layer at the first P positions: what the definition takes, from its input and weights, and what came out."""

    q_HPK: Tensor
    k_HPK: Tensor
    v_HPK: Tensor
    mixed_HPK: Tensor


def rotary_table(context: int, head_dim: int, theta: float) -> Tensor:
    """(context, head_dim / 2, 2): cosine, sine of position · theta^(-2i / head_dim). Su et al. 2021."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotate(x_BTGHK: Tensor, table_TK2: Tensor) -> Tensor:
    """Every pair of coordinates (2i, 2i + 1) turned by its position's angle: one complex product.

    x is (B, T, groups, H, head_dim) and may be a strided view; the last axis must be contiguous. The pairs
    are neighbours (the layout of llama GGUF files), not halves.
    """
    turn = torch.view_as_complex(table_TK2)[:, None, None, :]
    pairs = torch.view_as_complex(x_BTGHK.view(*x_BTGHK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Attention(nn.Module):
    """Multi-head causal attention, (B, T, d_model) -> (B, T, d_model), T <= context; no biases."""

    table_TK2: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.gain = config.qk_gain
        self.root = math.sqrt(config.head_dim)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        nn.init.normal_(self.qkv.weight, std=INPUT_STD / math.sqrt(d))
        nn.init.normal_(self.out.weight, std=1 / math.sqrt(d) / math.sqrt(2 * config.n_layers))
        table = rotary_table(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("table_TK2", table, persistent=False)
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        length = x_BTD.shape[1]
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.n_heads, -1))
        qk, v = qkv.split([2, 1], dim=2)
        q, k = rotate(qk, self.table_TK2[:length]).unbind(2)
        mixed_BHTK = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.squeeze(2).transpose(1, 2),
            is_causal=True,
            scale=attention.score_scale(self.gain, self.root),
        )
        # Copies of a few rows: a view would keep the whole activation alive.
        self._seen = (x_BTD[0, :SAMPLED].detach().clone(), mixed_BHTK[0, :, :SAMPLED].detach().clone())
        mixed: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return mixed

    @torch.no_grad()
    def take_sample(self) -> Sample | None:
        """Of the last forward, once: q, k and v anew from input and weights, by another path than forward's; its output.

        None when there was no forward since the last call: what a caller replaced cannot pass as having been looked at.
        """
        if self._seen is None:
            return None
        (x_PD, mixed_HPK), self._seen = self._seen, None
        packed = F.linear(x_PD, self.qkv.weight).view(len(x_PD), 3, self.n_heads, -1)
        turned = rotate(packed[None, :, :2], self.table_TK2[: len(x_PD)])[0]
        q_HPK, k_HPK = (part.transpose(0, 1) for part in turned.unbind(1))
        return Sample(q_HPK, k_HPK, packed[:, 2].transpose(0, 1), mixed_HPK)
