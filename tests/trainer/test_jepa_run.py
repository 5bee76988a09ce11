"""T-JEPA in a live run: its target follows at every step, is guarded by the decay declared for it, and is told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import Stopped
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import check_end, train
from karat.trainer.objectives.jepa import JepaObjective
from karat.trainer.objectives.jepa_collapse import CollapseWatch
from karat.trainer.opening import open_session
from karat.trainer.session import Session

Open = Callable[..., Session]
JEPA = (
    "jepa.enabled=true", "jepa.width=16", "jepa.heads=2", "jepa.layers=1", "jepa.hull_every=2", "jepa.ema_start=0.9",
    "model.nca=false", "model.gf16=false", "model.streams=1",
)  # fmt: skip


@pytest.fixture
def session(text: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Open:
    """session("a=b", policy="strict"): an open session of the tiny configuration with T-JEPA, nine steps."""

    def opened(*settings: str, policy: str = "strict") -> Session:
        config = read_config(None, [*tiny_settings, *JEPA, *settings], policy=policy, data=str(text))
        return open_session(config, tmp_path, Console(quiet=True))

    return opened


def objective(run: Session) -> JepaObjective:
    assert run.objective.jepa is not None
    return run.objective.jepa


@pytest.mark.parametrize(("averages", "checks"), [("false", 10), ("true", 20)])
def test_the_target_follows_and_is_looked_at_in_every_step(averages: str, checks: int, session: Open) -> None:
    """Once at the start, before each step that an update came before, and at the end; the same of the averages."""
    run = session(f"ema.enabled={averages}")
    before = objective(run).target.encoder.embedding.weight.clone()
    train(run, lambda: True)
    check_end(run)
    target = objective(run).target
    assert (target.used, target.previous) == (objective(run).decay(8), objective(run).decay(7))
    online, copied = run.model.embedding.weight, target.encoder.embedding.weight
    assert 0 < (copied - before).norm() < (online - before).norm()
    guard = run.monitor.guards["INV-6"]
    assert (guard.checks, guard.violations) == (checks, 0)


def test_a_target_that_no_longer_follows_ends_a_strict_run_before_the_next_step(session: Open) -> None:
    run = session("ema.enabled=false")

    def disturb(step: int) -> None:
        if step == 4:
            objective(run).update_target = lambda step: None  # type: ignore[method-assign]

    with pytest.raises(Stopped, match="INV-6 ema-decay violated at step 5"):
        train(run, lambda: True, disturb)
    assert run.progress.step == 5


def test_a_target_beside_the_hull_of_its_weights_ends_a_strict_run(session: Open) -> None:
    run = session("ema.enabled=false")
    honest = objective(run).target._average.move

    def beside(
        average: torch.Tensor, weight: torch.Tensor, decay: float, low: torch.Tensor, high: torch.Tensor
    ) -> None:
        honest(average, weight, decay, low, high)
        average.add_(0.01)

    def disturb(step: int) -> None:
        if step == 4:
            objective(run).target._average.move = beside  # type: ignore[method-assign]

    with pytest.raises(Stopped, match="INV-6 ema-decay violated at step 5"):
        train(run, lambda: True, disturb)


def test_what_the_objective_came_to_is_in_the_log_and_a_collapse_is_told_once(session: Open, tmp_path: Path) -> None:
    run = session("jepa.warmup=0", policy="observe")
    assert run.collapse is not None and run.collapse.warmup == 0
    run.collapse = CollapseWatch(warmup=0, patience=2)

    def disturb(step: int) -> None:
        with torch.no_grad():  # every place has the same features, in model and copy
            run.model.final_norm.gain.zero_()
            objective(run).target.encoder.final_norm.gain.zero_()

    train(run, lambda: True, disturb)
    assert [text.partition(":")[0] for text in run.progress.collapsed] == ["T-JEPA's features collapsed by step 2"]
    rows = list(read_rows(tmp_path / "log.jsonl"))
    assert len(rows) == 9 and all(row["jepa_loss"] > 0 and row["jepa_explained"] <= 1 for row in rows)
