"""The benchmark of what guards cost: its targets, its verdicts, and that it sees a cost that is there."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/guard_cost.py as a module, with blocks of a few milliseconds."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    module = importlib.import_module("guard_cost")
    monkeypatch.setattr(module, "SECONDS", 0.005)
    return module


@pytest.mark.parametrize(("milliseconds", "share"), [(0.5, 0.05), (2, 0.05), (6, 0.035), (10, 0.02), (50, 0.02)])
def test_the_target_falls_from_5_to_2_percent_between_2_and_10_ms(
    bench: ModuleType, milliseconds: float, share: float
) -> None:
    assert bench.target_of(milliseconds / 1000) == pytest.approx(share)


class Busy:
    """Guards that take two milliseconds of CPU before each step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.handle = optimizer.register_step_pre_hook(self._burn)

    def _burn(self, *_: Any) -> None:
        began = time.process_time()
        while time.process_time() - began < 2e-3:
            pass

    def finish(self) -> None:
        """Detaches."""
        self.handle.remove()


def test_a_cost_that_is_there_is_measured(bench: ModuleType) -> None:
    small = bench.Subject("small", lambda: bench.layers(16, 16, 10), (4, 16))
    cost = bench.measure(small, lambda model, optimizer: Busy(optimizer), log=False, steps=128)
    assert 1.9e-3 < cost.guards < 6e-3
    assert cost.ratio > 1.5
    assert cost.verdict != "yes"
    assert (cost.parameters, cost.weights) == (4, 442)


def test_the_verdict_is_noise_where_equal_blocks_differ(bench: ModuleType) -> None:
    cost = bench.Cost(
        "x",
        1,
        1,
        500,
        attach=0,
        step=0.01,
        guards=0,
        start=0,
        looks=0,
        ratio=1.01,
        low=1,
        high=1,
        control=1,
        target=0.02,
    )
    assert cost.verdict == "yes"
    assert replace(cost, start=0.03, looks=0.01).whole == pytest.approx(1.018)
    assert replace(cost, start=0.03, looks=0.04).verdict == "steady"
    assert replace(cost, ratio=1.03).verdict == "no"
    assert replace(cost, control=0.97).verdict == "noise"
    assert replace(cost, control=1.03, ratio=1.03).verdict == "noise"


def test_every_model_takes_a_step(bench: ModuleType) -> None:
    for subject in bench.SUBJECTS:
        inputs, targets = subject.batches()[0]
        logits = subject.build()(inputs).flatten(0, -2)
        assert logits.shape[0] == targets.numel() and torch.isfinite(logits).all()
        assert int(targets.max()) < logits.shape[1]
