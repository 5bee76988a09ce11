"""What stands at the masked places, predicted from the visible ones alone: cross-attention, no way round.

A query knows its position and nothing else: every query starts as one learned vector, and positions enter by turning
queries and keys (RoPE). Keys and values are the online encoder's outputs at visible places. Queries do not see each
other. Source: the predictor of I-JEPA, Assran et al. 2023, arXiv 2301.08243, with cross-attention. The seed's took its
keys and values from the target, and one query for all places.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 1e4
FIRST_OUTPUT = 0.1
"""Deviation of the first predictions: near 0, the mean of the targets, where the squared error is near 1."""


def turns(places_BM: Tensor, head_dim: int) -> Tensor:
    """(B, M, head_dim / 2) complex: the rotation of each coordinate pair at each place. Su et al. 2021."""
    frequency = THETA ** (-torch.arange(0, head_dim, 2, device=places_BM.device) / head_dim)
    angle = places_BM[..., None] * frequency
    return torch.polar(torch.ones_like(angle), angle)


def turned(x_BMHK: Tensor, turn_BMC: Tensor) -> Tensor:
    """Every pair of coordinates (2i, 2i + 1) of every head turned by its place's angle; float32."""
    pairs = torch.view_as_complex(x_BMHK.float().reshape(*x_BMHK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn_BMC[:, :, None, :]).flatten(-2)


class CrossBlock(nn.Module):
    """Cross-attention and a feed-forward, each behind a norm and a residual: queries (B, M, W) -> (B, M, W)."""

    def __init__(self, d_model: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(d_model, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for linear in (self.query, self.key_value, self.out, self.up, self.down):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))

    def forward(self, x_BMW: Tensor, memory_BVD: Tensor, turn_BMC: Tensor, turn_BVC: Tensor) -> Tensor:
        q = self.query(self.attention_norm(x_BMW)).unflatten(-1, (self.heads, -1))
        k, v = self.key_value(memory_BVD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k = turned(q, turn_BMC).to(v.dtype), turned(k, turn_BVC).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x_BMW = x_BMW + self.out(mixed.transpose(1, 2).flatten(2))
        y_BMW: Tensor = x_BMW + self.down(F.gelu(self.up(self.feedforward_norm(x_BMW))))
        return y_BMW


class Predictor(nn.Module):
    """(masked places (B, M), visible places (B, V), outputs at visible places (B, V, D)) -> predictions (B, M, D)."""

    def __init__(self, d_model: int, *, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = nn.Parameter(torch.randn(width))
        self.blocks = nn.ModuleList([CrossBlock(d_model, width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, d_model, bias=False)
        nn.init.normal_(self.out.weight, std=FIRST_OUTPUT / math.sqrt(width))

    def forward(self, masked_BM: Tensor, visible_BV: Tensor, seen_BVD: Tensor) -> Tensor:
        turn_BMC, turn_BVC = turns(masked_BM, self.head_dim), turns(visible_BV, self.head_dim)
        memory_BVD = F.layer_norm(seen_BVD, seen_BVD.shape[-1:])
        x_BMW = self.query.expand(*masked_BM.shape, -1)
        for block in self.blocks:
            x_BMW = block(x_BMW, memory_BVD, turn_BMC, turn_BVC)
        predicted: Tensor = self.out(self.norm(x_BMW))
        return predicted
