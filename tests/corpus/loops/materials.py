"""What many loops are made of: seeded data and small models. The loops themselves are written out, as users write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach, Case, Clean
from torch import Tensor, nn

D, H, K = 16, 32, 4
"""Inputs, hidden units and classes of the small classifier."""
V, T = 13, 12
"""Vocabulary and length of the small sequences."""
SIZE = 32
"""Samples of a batch."""


def clean(run: Callable[[Attach], None]) -> Clean:
    """The loop of this function, named after it and described by its docstring."""
    return Clean(run.__name__.replace("_", "-"), (run.__doc__ or "").strip(), run)


def buggy(
    about: str, *rules: str, effect: int | None = 0, source: str = "", needs: str = ""
) -> Callable[[Callable[[Attach, bool], None]], Case]:
    """The loop of the function that follows, named after it; `effect` is the first step at which the bug tells."""

    def made(run: Callable[[Attach, bool], None]) -> Case:
        return Case(run.__name__.replace("_", "-"), about, frozenset(rules), effect, run, source, needs)

    return made


def labelled(count: int = 256, classes: int = K, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around one centre to each class, (count, D) and (count,): can be learnt, not perfectly."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, D, generator=torch.Generator().manual_seed(99))
    y = torch.randint(classes, (count,), generator=draw)
    return centres[y] + 0.8 * torch.randn(count, D, generator=draw), y


def batches(x: Tensor, y: Tensor, steps: int, size: int = SIZE, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches, in epochs of a new order each; the last of an epoch is dropped when it is short."""
    draw = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        order = torch.randperm(len(x), generator=draw)
        for start in range(0, len(x) - size + 1, size):
            if done == steps:
                return
            done += 1
            yield x[order[start : start + size]], y[order[start : start + size]]


def mlp(seed: int = 0, width: int = H, out: int = K) -> nn.Sequential:
    """D -> width -> width -> out with ReLU."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def text(count: int = 128, length: int = T + 1, seed: int = 0) -> Tensor:
    """Token sequences (count, length) in which the next token mostly follows from the last by a fixed rule."""
    draw = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(V, (count,), generator=draw)]
    for _ in range(length - 1):
        jump = torch.rand(count, generator=draw) < 0.15
        tokens.append(torch.where(jump, torch.randint(V, (count,), generator=draw), (3 * tokens[-1] + 1) % V))
    return torch.stack(tokens, 1)


def windows(tokens: Tensor, steps: int, size: int = SIZE, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of inputs and of targets one token further on, both (size, length - 1)."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = tokens[torch.randperm(len(tokens), generator=draw)[:size]]
        yield rows[:, :-1], rows[:, 1:]


class Language(nn.Module):
    """A causal transformer of one block: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, seed: int = 0, width: int = D, vocabulary: int = V, tie: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Embedding(T, width)
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.embedding, self.places):
            nn.init.normal_(embedding.weight, std=0.1)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places.weight[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return self.head(self.norm_f(x))  # type: ignore[no-any-return]


def next_token(logits: Tensor, targets: Tensor, **options: int | str) -> Tensor:
    """Mean cross-entropy of (B, T, V) logits and (B, T) targets, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)  # type: ignore[arg-type]


def train_classifier(
    guards: Any, model: nn.Module, optimizer: torch.optim.Optimizer, pairs: Any, tell: bool = True
) -> None:
    """Trains a classifier on pairs of inputs and labels, and logs what it was given."""
    for x, y in pairs:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        guards.log(loss=loss.item(), **({"inputs": x, "targets": y} if tell else {}))


def classifier(out: int = K) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model and its optimizer."""
    model = mlp(out=out)
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def train_language(guards: Any, model: nn.Module, optimizer: torch.optim.Optimizer, pairs: Any, **ignore: int) -> None:
    """Trains a language model on pairs of inputs and targets, and logs them."""
    for x, y in pairs:
        loss = next_token(model(x), y, **ignore)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guards.log(loss=loss.item(), inputs=x, targets=y)
