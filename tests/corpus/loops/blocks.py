"""Small data sets and models for the loops: fixed seeds, fresh batches at every step, milliseconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CLASSES = 8, 4
"""Features and classes of `blobs`."""
VOCABULARY, LENGTH, HIDDEN = 11, 12, 16
"""Tokens, positions and hidden width of `text` and `Tokens`."""
CENTRES = 1.5 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def blobs(steps: int, rows: int = 16, seed: int = 1000) -> list[Batch]:
    """`steps` batches of x (rows, WIDTH) around the centre of its class y (rows,)."""
    batches = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        y = torch.randint(0, CLASSES, (rows,), generator=generator)
        batches.append((CENTRES[y] + 0.8 * torch.randn(rows, WIDTH, generator=generator), y))
    return batches


def sequences(steps: int, rows: int = 6, length: int = 5) -> list[Batch]:
    """`steps` batches of x (rows, length, WIDTH), every position around the centre of the row's class y (rows,)."""
    batches = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(3000 + step)
        y = torch.randint(0, CLASSES, (rows,), generator=generator)
        noise = torch.randn(rows, length, WIDTH, generator=generator)
        batches.append((CENTRES[y].unsqueeze(1) + noise, y))
    return batches


def text(steps: int, rows: int = 8, seed: int = 2000) -> list[Batch]:
    """`steps` batches of tokens and next tokens, (rows, LENGTH) each: t -> 2t + 1, one time in five anything."""
    batches = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        anything = torch.randint(0, VOCABULARY, (rows, LENGTH + 1), generator=generator)
        surprise = torch.rand(rows, LENGTH + 1, generator=generator) < 0.2
        tokens = anything.clone()
        for t in range(1, LENGTH + 1):
            tokens[:, t] = torch.where(surprise[:, t], anything[:, t], (2 * tokens[:, t - 1] + 1) % VOCABULARY)
        batches.append((tokens[:, :-1].clone(), tokens[:, 1:].clone()))
    return batches


def next_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits (rows, positions, tokens)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch],
        loss: Loss = F.cross_entropy) -> None:  # fmt: skip
    """The plain loop."""
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


@torch.no_grad()
def validate(model: nn.Module, batch: Batch, loss: Loss = F.cross_entropy) -> float:
    """The loss of one held-out batch, in whatever mode the model is in."""
    return loss(model(batch[0]), batch[1]).item()


class Classifier(nn.Module):
    """x (B, WIDTH) -> logits (B, CLASSES): body, a norm, a head."""

    def __init__(self, norm: nn.Module | None = None, drop: nn.Module | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(WIDTH, HIDDEN, bias=False), norm or nn.LayerNorm(HIDDEN), nn.ReLU())
        self.drop = drop or nn.Identity()
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x)))


class Tokens(nn.Module):
    """tokens (B, T) -> logits (B, T, VOCABULARY): embedding, positions, one attention, a head that may be tied."""

    def __init__(self, attend: Attend | None = None, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        nn.init.normal_(self.embedding.weight, std=0.2)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, HIDDEN))
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.attend = attend or causal
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(self.norm(x + self.out(self.attend(q, k, v))))


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to this position and the ones before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def adam(model: nn.Module, lr: float = 1e-2, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, **options)
