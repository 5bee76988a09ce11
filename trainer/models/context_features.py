"""What the last few tokens are, added to the embedding: one trained table for each distance, one trained weight each.

    x_t = E[token_t] + sum_{i=1..n} w_i C_i[token_{t-i}]    (terms before the start of the sequence are absent)

An n-gram model's view, which attention then works on. Source: the seed's hybrid model, which has six such tables with
fixed weights; here the weights start there and are trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED_WEIGHTS = (0.70, 0.45, 0.30, 0.20, 0.13, 0.08)
"""The seed's weights of the features, nearest token first."""
MOST = len(SEED_WEIGHTS)


class ContextFeatures(nn.Module):
    """tokens (B, T) -> (B, T, d_model): the weighted sum of `distances` features, 1 <= distances <= 6."""

    def __init__(self, distances: int, vocab: int, d_model: int, init_std: float) -> None:
        super().__init__()
        if not 1 <= distances <= MOST:
            raise ValueError(f"context features look 1 to {MOST} tokens back, got {distances}")
        self.tables_NVD = nn.Parameter(torch.empty(distances, vocab, d_model))
        nn.init.normal_(self.tables_NVD, std=init_std)
        self.weights_N = nn.Parameter(torch.tensor(SEED_WEIGHTS[:distances]))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        total: Tensor = self.tables_NVD.new_zeros(*tokens_BT.shape, self.tables_NVD.shape[-1])
        for distance, (table_VD, weight) in enumerate(zip(self.tables_NVD, self.weights_N, strict=True), start=1):
            if distance < length:
                feature = F.embedding(tokens_BT[:, :-distance], table_VD)
                total = total + weight * F.pad(feature, (0, 0, distance, 0))
        return total
