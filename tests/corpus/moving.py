"""A small loop whose weights are watched: what the tests of the rules on weights and buffers train, and ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.report import Violation
from karat.invariants.runtime import watch

SLUGS = frozenset(
    [
        "parameter-moves",
        "frozen",
        "weight-decay",
        "ema",
        "ties",
        "replicas",
        "buffers",
        "precision",
        "overflow",
        "update-ratio",
    ]
)


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    return x, (x[:, 0] > 0).long()


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 2))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 8,
    *,
    before: Callable[[int], None] | None = None,
    after: Callable[[int], None] | None = None,
    **declared: Any,
) -> list[Violation]:
    """The plain loop, watched; `before` runs between backward and step, `after` when the step is over."""
    with watch(model, optimizer, policy="observe", **declared) as guards:
        for step in range(steps):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y).backward()
            if before is not None:
                before(step)
            optimizer.step()
            if after is not None:
                after(step)
    raised = {slug: why for slug, why in guards.not_checked.items() if "raised" in why}
    assert not raised, raised
    return [v for v in guards.violations if v.slug in SLUGS]


def only(found: list[Violation], slug: str, severity: str, step: int, *words: str) -> Violation:
    mine = [v for v in found if v.slug == slug and v.severity == severity]
    assert mine and [v.slug for v in found if v.slug != slug] == [], found
    assert mine[0].step == step, mine[0]
    for word in words:
        assert word in mine[0].message, mine[0].message
    return mine[0]
