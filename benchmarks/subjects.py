"""The models whose steps are timed with guards and without, from about 2 ms to about 50 ms a step on one thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCHES = 8
"""Batches that a training goes through in turn."""


class Transformer(nn.Module):
    """Tokens (B, T) -> logits (B, T, vocabulary), pre-norm, causal."""

    def __init__(self, width: int, depth: int, length: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = {"nhead": 4, "dim_feedforward": 4 * width, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, **layer) for _ in range(depth))  # type: ignore[arg-type]
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block of two convolutions with batch norm."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        short = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.short = nn.Identity() if into == out and stride == 1 else short

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


def residual() -> nn.Module:
    """Three stages of three blocks on 16, 32 and 64 channels: 65 parameters."""
    blocks = [Block(16 if k == 0 else c // 2 if k == first else c, c, 1 if c == 16 or k > first else 2)
              for c, first in ((16, 0), (32, 3), (64, 6)) for k in range(first, first + 3)]  # fmt: skip
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def layers(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    pairs = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*pairs[:-1])


def convolutions() -> nn.Module:
    """A small classifier of 28 x 28 images."""
    parts = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Subject:
    """A model to be timed and its batch; `about` how long a step takes is measured, not assumed."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: bool = False

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of a fixed seed."""
        draw = torch.Generator().manual_seed(0)
        pairs = []
        for _ in range(BATCHES):
            if self.tokens:
                pairs.append(tuple(torch.randint(256, self.shape, generator=draw) for _ in range(2)))
            else:
                labels = torch.randint(10, self.shape[:1], generator=draw)
                pairs.append((torch.randn(self.shape, generator=draw), labels))
        return pairs  # type: ignore[return-value]


SUBJECTS = (
    Subject("MLP", lambda: layers(128, 256, 256, 256, 10), (80, 128)),
    Subject("small CNN", convolutions, (56, 1, 28, 28)),
    Subject("transformer, 2 layers", lambda: Transformer(64, 2, 32), (10, 32), tokens=True),
    Subject("transformer, 4 layers", lambda: Transformer(128, 4, 64), (8, 64), tokens=True),
    Subject("ResNet, 65 parameters", residual, (6, 3, 24, 24)),
    Subject("MLP of 5M weights, batch 8", lambda: layers(1024, 1536, 1536, 784, 10), (8, 1024)),
)
