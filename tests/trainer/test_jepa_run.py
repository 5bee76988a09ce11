"""T-JEPA in the running loop: the target is the proved average of the weights at every step, under INV-6, resumed or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from karat.core.errors import ConfigError
from karat.core.formulas import ema
from karat.invariants.runtime.monitor import Stopped
from karat.trainer.checkpoint import load_checkpoint
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.evaluate import Interrupted
from karat.trainer.loop import check_end, train
from karat.trainer.objectives.jepa import JepaObjective
from karat.trainer.session import Session, open_session, take_up

Open = Callable[..., Session]
PARTS = ("jepa.width=16", "jepa.heads=2", "jepa.layers=1", "jepa.hull_every=1", "jepa.warmup=3")


@pytest.fixture
def session(text: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Open:
    """session(out="name"): an open session of the tiny configuration with T-JEPA, under strict."""

    def opened(*settings: str, out: str = "run") -> Session:
        sets = [*tiny_settings, *PARTS, *settings]
        config = read_config(None, sets, preset="tjepa", policy="strict", data=str(text))
        return open_session(config, tmp_path / out, Console(quiet=True))

    return opened


def jepa(run: Session) -> JepaObjective:
    assert run.objective.jepa is not None
    return run.objective.jepa


def target(run: Session) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in jepa(run).target.encoder.named_parameters()}


def test_the_target_moves_once_a_step_by_the_proved_decay(session: Open) -> None:
    run = session()
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


def test_a_target_that_is_not_updated_stops_the_run_at_the_next_step(session: Open) -> None:
    run = session()
    jepa(run).update_target = lambda step: None  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="INV-6 ema-decay violated at step 1"):
        train(run, lambda: True)
    assert run.progress.step == 1


def test_a_loss_that_trains_no_predictor_ends_the_run_before_a_step(session: Open) -> None:
    run = session()
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    honest = jepa(run).predict
    jepa(run).predict = lambda *given: honest(*given)._replace(predicted_BMD=honest(*given)[0].detach())  # type: ignore[method-assign]
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
