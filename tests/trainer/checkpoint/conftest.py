"""A small run with everything that a resumed run must get back: moments, counters, dropout's random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from karat.trainer.checkpoint import CheckpointSaver, Draft, NoRoom, capture_rng, draft, save_checkpoint


class Mlp(nn.Module):
    """An MLP with dropout and a head tied to its embedding: (B,) tokens -> (B, vocab) logits."""

    def __init__(self, width: int = 6, vocab: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("codes", torch.arange(4, dtype=torch.uint8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.hidden(self.embed(tokens)))))


@dataclass
class Run:
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            tokens = torch.arange(5) * (step + 1) % 8
            self.optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            loss = nn.functional.cross_entropy(self.model(tokens), (tokens + 1) % 8)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "extra": {"loss": 1.25, "position": step},
            "rng": capture_rng(),
            "config_digest": "c0ffee",
        }

    def draft(self, step: int, **given: Any) -> Draft:
        return draft(**(self.state(step) | given))

    def save(self, folder: Path, step: int, **given: Any) -> Path:
        return save_checkpoint(folder, **(self.state(step) | {"keep_last": 3} | given))


def build_run(seed: int = 0, width: int = 6) -> Run:
    torch.manual_seed(seed)
    model = Mlp(width)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1, "name": "decayed"},
        {"params": vectors, "weight_decay": 0.0, "name": "undecayed"},
    ]
    return Run(model, AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True))


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return build_run


@dataclass
class Refusals:
    """What a saver refused: (step, name, why)."""

    rows: list[tuple[int, str, NoRoom]]

    def __call__(self, step: int, error: NoRoom) -> None:
        self.rows.append((step, error.target.name, error))

    @property
    def names(self) -> list[tuple[int, str]]:
        return [(step, name) for step, name, _ in self.rows]


@pytest.fixture
def refusals() -> Refusals:
    return Refusals([])


@pytest.fixture
def make_saver(tmp_path: Path, refusals: Refusals) -> Callable[..., CheckpointSaver]:
    """make_saver(keep_last=2, background=False, …): a saver of the folder tmp_path / "checkpoints"."""

    def made(**given: Any) -> CheckpointSaver:
        settings: dict[str, Any] = {"keep_last": 2, "refused": refusals}
        return CheckpointSaver(tmp_path / "checkpoints", **(settings | given))

    return made
