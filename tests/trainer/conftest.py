"""A small real text, and the settings of a run that takes seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from karat.trainer.cli import main

WORDS = [
    a + b
    for a in ("ba", "co", "di", "fu", "ge", "la", "mo", "ni", "pa", "re", "su")
    for b in ("n", "rt", "s", "lle", "")
]

TINY = (
    "steps=9", "batch_size=4", "threads=1", "model.d_model=32", "model.n_layers=2", "model.n_heads=2",
    "model.context=32", "eval.bytes=2000", "optim.warmup=2", "checkpoint.every=3", "seed=5",
)  # fmt: skip

Trainer = Callable[..., int]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 kB of varied text: sentences of common words, the same in every session."""
    source = random.Random(7)
    sentences = [" ".join(source.choice(WORDS) for _ in range(source.randint(4, 14))) for _ in range(1400)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(". ".join(s.capitalize() for s in sentences), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """The settings of `tiny`, for tests that make a session or a process of their own."""
    return TINY


@pytest.fixture
def tiny(text: Path, tmp_path: Path) -> Trainer:
    """tiny("a=b", …, out="name", policy="strict"): `trainer run` with the tiny settings; returns the exit code."""

    def run(*settings: str, out: str = "run", policy: str = "strict") -> int:
        sets = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
        return main(["run", "--policy", policy, "--data", str(text), "--out", str(tmp_path / out), *sets])

    return run


@pytest.fixture
def model_bytes(tmp_path: Path) -> Callable[[str], bytes]:
    """model_bytes("name"): the final weights of the run that `tiny` made under this name, as they are on disk."""
    return lambda out: (tmp_path / out / "checkpoints" / "final" / "model.safetensors").read_bytes()
