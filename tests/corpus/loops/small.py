"""Small data and networks from fixed seeds, on which the loops train: each learns something within a few dozen steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


def points(steps: int, size: int = 32, classes: int = 4, features: int = 8, seed: int = 1) -> Iterator[Batch]:
    """Fresh batches of noisy points around one centre for each class; as many batches as steps."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(classes, features, generator=generator)
    for _ in range(steps):
        targets = torch.randint(classes, (size,), generator=generator)
        yield centres[targets] + torch.randn(size, features, generator=generator), targets


def lines(steps: int, size: int = 32, features: int = 8, seed: int = 2) -> Iterator[Batch]:
    """Fresh batches of a linear regression with noise: inputs (size, features), targets (size, 1)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(features, 1, generator=generator)
    for _ in range(steps):
        inputs = torch.randn(size, features, generator=generator)
        yield inputs, inputs @ weight + 0.1 * torch.randn(size, 1, generator=generator)


def images(steps: int, size: int = 16, classes: int = 3, seed: int = 3) -> Iterator[Batch]:
    """Fresh batches of noisy 8 by 8 images, each class with its own pattern: inputs (size, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, 1, 8, 8, generator=generator)
    for _ in range(steps):
        targets = torch.randint(classes, (size,), generator=generator)
        yield patterns[targets] + torch.randn(size, 1, 8, 8, generator=generator), targets


def texts(steps: int, size: int = 8, length: int = 16, vocabulary: int = 12, seed: int = 4) -> Iterator[Batch]:
    """Fresh batches of a Markov chain over tokens: inputs and next tokens, both (size, length)."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.softmax(3 * torch.randn(vocabulary, vocabulary, generator=generator), dim=-1)
    for _ in range(steps):
        columns = [torch.randint(vocabulary, (size,), generator=generator)]
        for _ in range(length):
            columns.append(torch.multinomial(chances[columns[-1]], 1, generator=generator)[:, 0])
        tokens = torch.stack(columns, dim=1)
        yield tokens[:, :-1], tokens[:, 1:]


def epoch(data: Batch, size: int, number: int) -> Iterator[Batch]:
    """One pass over a data set in batches, in an order of its own for each epoch's number."""
    inputs, targets = data
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(100 + number))
    for rows in order.split(size):
        yield inputs[rows], targets[rows]


def data_set(count: int, classes: int = 4, features: int = 8, seed: int = 1) -> Batch:
    """A fixed set of points, as one pair of tensors."""
    return next(points(1, count, classes, features, seed))


def mlp(features: int = 8, classes: int = 4, width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes)
    )


def cnn(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


class Pair(nn.Module):
    """An encoder and a head."""

    def __init__(self, features: int = 8, classes: int = 4, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs))


class Block(nn.Module):
    """Causal attention with one head and a feed-forward layer, both pre-norm and residual; inputs (batch, length, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        query, key, value = self.mix(hidden).chunk(3, dim=-1)
        scores = query @ key.transpose(-2, -1) / hidden.shape[-1] ** 0.5
        causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()
        mask = causal if allowed is None else causal & allowed
        return self.out(torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1) @ value)

    def forward(self, hidden: Tensor, allowed: Tensor | None = None) -> Tensor:
        hidden = hidden + self.attend(self.norm(hidden), allowed)
        return hidden + self.feed(self.norm2(hidden))


class Language(nn.Module):
    """A causal language model: tokens (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, vocabulary: int = 12, width: int = 16, depth: int = 2, length: int = 16) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))

    def forward(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, allowed)
        return self.head(self.norm(hidden))
