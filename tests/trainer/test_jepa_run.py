"""T-JEPA in a live run: its target follows at every step, is guarded by the decay declared for it, and is told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from karat.core.errors import ConfigError
from karat.core.formulas import ema
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import Stopped
from karat.trainer.checkpoint import load_checkpoint
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.evaluate import Interrupted
from karat.trainer.loop import check_end, train
from karat.trainer.objectives.jepa import JepaObjective
from karat.trainer.objectives.jepa_collapse import CollapseWatch
from karat.trainer.opening import open_session, take_up
from karat.trainer.session import Session

Open = Callable[..., Session]
JEPA = (
    "jepa.enabled=true", "jepa.width=16", "jepa.heads=2", "jepa.layers=1", "jepa.hull_every=2", "jepa.ema_start=0.9",
    "model.nca=false", "model.gf16=false", "model.streams=1",
)  # fmt: skip


@pytest.fixture
def session(text: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Open:
    """session("a=b", policy="strict"): an open session of the tiny configuration with T-JEPA, nine steps."""

    def opened(*settings: str, policy: str = "strict", out: str = ".") -> Session:
        config = read_config(None, [*tiny_settings, *JEPA, *settings], policy=policy, data=str(text))
        return open_session(config, tmp_path / out, Console(quiet=True))

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


def target(run: Session) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in objective(run).target.encoder.named_parameters()}


def test_the_target_moves_once_a_step_by_the_proved_decay(session: Open) -> None:
    run = session("jepa.hull_every=1", "ema.enabled=false")
    expected = target(run)

    def follow(step: int) -> None:
        """Before step `step`: the target is the average after the step before it."""
        if step:
            decay = ema.decay_at(step - 1, run.config.steps, *run.config.jepa.averaging.ends)
            for name, weight in run.model.named_parameters():
                expected[name] = expected[name] + (weight.detach() - expected[name]) * (1 - float(decay))
        for name, weight in target(run).items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-8)

    first = target(run)
    train(run, lambda: True, follow)
    check_end(run)
    assert run.monitor.guards["INV-6"].checks == 10 and run.monitor.guards["INV-6"].violations == 0
    assert all(not torch.equal(weight, first[name]) for name, weight in target(run).items())


def test_a_loss_that_trains_no_predictor_ends_the_run_before_a_step(session: Open) -> None:
    run = session()
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    honest = objective(run).predict
    objective(run).predict = lambda *given: honest(*given)._replace(predicted_BMD=honest(*given)[0].detach())  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"no gradient reaches jepa\.predictor"):
        train(run, lambda: True)
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())


def test_a_resumed_run_has_the_same_target(session: Open) -> None:
    whole = session(out="whole")
    train(whole, lambda: True)
    run = session(out="part")
    with pytest.raises(Interrupted):
        train(run, lambda: run.progress.step < 5)
    run.save()
    run.saver.finish()
    again = session(out="again")
    take_up(again, load_checkpoint(run.checkpoints / "step-000005"))
    train(again, lambda: True)
    assert target(again).keys() == target(whole).keys()
    assert all(torch.equal(weight, target(again)[name]) for name, weight in target(whole).items())
