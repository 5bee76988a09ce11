"""Causal self-attention, rotary positions or none, a declared gain: scores = gain · q.k / sqrt(head_dim)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.formulas import attention
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.linear import block_linear, by_definition
from karat.trainer.models.normalization import unit_rms
from karat.trainer.models.starts import start_of

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
    wide = x_BTGHK if x_BTGHK.dtype == table_TK2.dtype else x_BTGHK.to(table_TK2.dtype)
    pairs = torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x_BTGHK.dtype)


class Attention(nn.Module):
    """Multi-head causal attention, (B, T, d_model) -> (B, T, d_model), T <= context; no biases."""

    table_TK2: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, start = config.d_model, start_of(config)
        self.n_heads = config.n_heads
        self.gain = config.qk_gain
        self.root = math.sqrt(config.head_dim)
        self.rotary, self.normed = config.positions == "rope", config.qk_norm
        self.qkv = block_linear(config, d, 3 * d, start.inputs, gf16=False)
        self.out = block_linear(config, d, d, start.attention_output, gf16=False)
        table = rotary_table(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("table_TK2", table, persistent=False)
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self._queries_keys_values(self.qkv(x_BTD))
        mixed_BHTK = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
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
        qkv = self._queries_keys_values(by_definition(self.qkv, x_PD.float()[None]))
        q_HPK, k_HPK, v_HPK = (part[0].transpose(0, 1) for part in qkv)
        return Sample(q_HPK, k_HPK, v_HPK, mixed_HPK.float())

    def _queries_keys_values(self, packed_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3 d_model) -> q, k and v, each (B, T, H, head_dim); q and k normed and turned where configured."""
        packed_BT3HK = packed_BTC.view(*packed_BTC.shape[:2], 3, self.n_heads, -1)
        if not (self.normed or self.rotary):
            q, k, v = packed_BT3HK.unbind(2)
            return q, k, v
        # the backward of a split is one copy; that of two slices fills two arrays and adds them
        qk, v = torch.split_with_sizes(packed_BT3HK, [2, 1], 2)
        if self.normed:
            qk = unit_rms(qk)
        if self.rotary:
            qk = rotate(qk, self.table_TK2[: packed_BTC.shape[1]])
        q, k = qk.unbind(2)
        return q, k, v.squeeze(2)
