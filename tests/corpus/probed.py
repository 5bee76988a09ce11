"""Small models with parts that can be broken, their batches, and what a preflight of them says of one rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.run.catalogue import find_rule
from karat.invariants.runtime import Spec, preflight
from karat.invariants.runtime.preflight import Report

V, T, D, B = 11, 8, 16, 6


class Tokens(nn.Module):
    """A small causal transformer, whose parts can be broken."""

    def __init__(self, causal: bool = True, mix: bool = True, zero: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.mix = causal, mix
        self.embedding, self.place = nn.Embedding(V, D), nn.Parameter(0.1 * torch.randn(T, D))
        self.qkv, self.out, self.drop = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Dropout(drop)
        self.head = nn.Linear(D, V)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.mix:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:  # a sequence of length one to each position
            y = F.scaled_dot_product_attention(*(t.unsqueeze(2) for t in (q, k, v))).squeeze(2)
        return self.head(x + self.drop(self.out(y)))  # type: ignore[no-any-return]


class Body(nn.Module):
    """x (B, D) -> logits (B, V) through `middle(hidden)`."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(D, D), middle or nn.ReLU(), nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))  # type: ignore[no-any-return]


def from_function(function: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """A module of parts whose forward is a function of itself and the input."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    return Made()


def text() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1].clone(), tokens[:, 1:].clone()


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, D, generator=generator), torch.randint(0, V, (B,), generator=generator)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def adam(model: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def probed(
    model: nn.Module, *, loss: Any = cross_entropy, batch: Any = None, optimizer: Any = None, **spec: Any
) -> Report:
    given = batch if batch is not None else (text() if isinstance(model, Tokens) else vectors())
    return preflight(model, given, loss, optimizer or adam(model), spec=Spec(seconds=60, **spec))


def severity(report: Report, rule: str) -> str:
    """FAIL, WARN, held or not run: what became of the rule with this slug."""
    found = {f.severity.value for f in report.findings if f.slug == rule}
    if found:
        return min(found)  # FAIL before WARN
    return "held" if find_rule(rule).id in report.held else "not run"


def message(report: Report, rule: str) -> str:
    return " ".join(f.message for f in report.findings if f.slug == rule)
