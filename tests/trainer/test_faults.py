"""For each of the five: a run whose quantity is really driven out of its domain ends at that very step; its clean twin
does not. Under STRICT parameters and optimizer are left as they were before the step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from karat.core.report import digest_holds
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import Stopped
from karat.trainer import run as command
from karat.trainer.checkpoint import load_checkpoint
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import Diverged, check_end, planned_steps, train
from karat.trainer.run import start
from karat.trainer.session import Session, open_session

STEP = 5


Open = Callable[..., Session]
Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(text: Path, tiny_settings: tuple[str, ...]) -> Configure:
    """configure("a=b", policy="strict", out=…): the tiny configuration."""

    def made(*settings: str, policy: str = "strict", out: Path | None = None) -> RunConfig:
        return read_config(None, [*tiny_settings, *settings], policy=policy, data=str(text), out=out)

    return made


@pytest.fixture
def session(configure: Configure, tmp_path: Path) -> Open:
    """session("a=b", policy="strict"): an open session of the tiny configuration."""
    return lambda *settings, **options: open_session(configure(*settings, **options), tmp_path, Console(quiet=True))


def rate_from_outside(run: Session) -> None:
    run.optimizer.param_groups[1]["lr"] = 0.02


def leaking_matrix(run: Session) -> None:
    residual = run.model.residual
    assert residual is not None
    honest = residual.coefficients

    def perturbed() -> Any:
        coefficients = honest()
        first = coefficients[0].clone()
        first[1, 2, 0] += 1e-3
        return type(coefficients)(first, *coefficients[1:])

    residual.coefficients = perturbed  # type: ignore[method-assign]


def identical_streams(run: Session) -> None:
    residual = run.model.residual
    assert residual is not None
    honest = residual.coefficients

    def uniform() -> Any:
        mixing, pre, post = honest()
        return type(honest())(torch.full_like(mixing, 0.25), pre, torch.ones_like(post))

    residual.coefficients = uniform  # type: ignore[method-assign]


def collapsed_grid(run: Session) -> None:
    assert run.objective.nca is not None
    with torch.no_grad():
        run.objective.nca.state_bias[3] = 100.0


def weights_beyond_range(run: Session) -> None:
    _, weight = run.model.gf16_parameters()[1]
    with torch.no_grad():
        weight[0, 0] = 5e9


def vanishing_weights(run: Session) -> None:
    _, weight = run.model.gf16_parameters()[0]
    with torch.no_grad():
        weight.mul_(1e-12)


FAULTS: list[tuple[Callable[[Session], None], str, str]] = [
    (rate_from_outside, "INV-8 lr-band", "lr = 0.02"),
    (leaking_matrix, "INV-11 mhc-doubly-stochastic", "residual <= 1e-06"),
    (identical_streams, "INV-11 mhc-doubly-stochastic", "spread = "),
    (collapsed_grid, "INV-4 nca-entropy-band", "H = 0 nats"),
    (weights_beyond_range, "INV-3 gf16-safe-domain", "max|w| = 5e+09"),
    (vanishing_weights, "INV-3 gf16-safe-domain", "max|w| = "),
]


@pytest.mark.parametrize(("fault", "name", "observed"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_ends_the_run_at_its_step(
    fault: Callable[[Session], None], name: str, observed: str, session: Open
) -> None:
    run = session()
    before: dict[str, Any] = {}

    def disturb(step: int) -> None:
        if step == STEP:
            fault(run)
            before["parameters"] = [p.detach().clone() for p in run.objective.parameters()]
            before["optimizer"] = [
                t.clone() for s in run.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)
            ]

    with pytest.raises(Stopped) as stopped:
        train(run, lambda: True, disturb)
    message = str(stopped.value)
    assert message.startswith(f"{name} violated at step {STEP} (before the step; strict)") and observed in message
    assert "proved: " in message and run.progress.step == STEP
    after = [t for s in run.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert all(map(torch.equal, run.objective.parameters(), before["parameters"]))
    assert len(after) == len(before["optimizer"]) and all(map(torch.equal, after, before["optimizer"]))
    assert {v.step for v in run.monitor.violations} == {STEP}


def test_the_clean_twin_ends_well(session: Open) -> None:
    run = session()
    train(run, lambda: True, lambda step: None)
    assert run.progress.step == 9 and not run.monitor.violations and not run.monitor.not_exercised()
    assert {i: g.checks for i, g in run.monitor.guards.items()} == {
        "INV-2": 2, "INV-3": 9, "INV-4": 9, "INV-6": 9, "INV-8": 10, "INV-11": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("asha.threshold=2.65", "INV-2 asha-threshold"),
        ("optim.lr=0.5", "INV-8 lr-band"),
        ("optim.lr=0.002", "INV-8 lr-band"),
    ],
)
def test_a_declared_fault_ends_the_run_before_the_first_step(setting: str, name: str, session: Open) -> None:
    run = session(setting)
    with pytest.raises(Stopped, match=f"{name} violated before the first step"):
        train(run, lambda: True)
    assert run.progress.step == 0 and not run.optimizer.state


def test_the_last_step_is_guarded_too(session: Open) -> None:
    run = session()
    train(run, lambda: True)
    check_end(run)
    weights_beyond_range(run)
    with pytest.raises(Stopped, match=r"INV-3 gf16-safe-domain violated at step 9 \(at the end; strict\)"):
        check_end(run)


def test_a_very_deep_clean_model_raises_no_alarm(session: Open) -> None:
    run = session(
        "model.n_layers=110", "model.d_model=4", "model.n_heads=1", "model.streams=3", "steps=2", "optim.warmup=1"
    )
    train(run, lambda: True)
    assert run.progress.step == 2 and not run.monitor.violations


def test_a_long_plan_is_looked_at_in_bounded_time() -> None:
    steps = list(planned_steps(10**12))
    assert len(steps) == 100_000 and steps[0] == 0 and steps[-1] == 10**12 - 1
    assert list(planned_steps(7)) == list(range(7))


def test_warn_goes_on_and_reports(configure: Configure, tmp_path: Path) -> None:
    config = configure(policy="warn", out=tmp_path / "run")
    grabbed: list[int] = []

    def disturb(step: int) -> None:
        grabbed.append(step)

    code, bpb = start(config, Console(quiet=True), disturb)
    assert (code, grabbed) == (0, list(range(9))) and bpb is not None


def stopped_run(config: RunConfig, disturb_at: int) -> tuple[int, float | None]:
    """A whole strict run, through the command's own path, whose learning rate is set from outside at one step."""
    opened: list[Session] = []
    honest = command.open_session

    def spy(*arguments: Any) -> Session:
        opened.append(honest(*arguments))
        return opened[0]

    def disturb(step: int) -> None:
        if step == disturb_at:
            rate_from_outside(opened[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "open_session", spy)
        return start(config, Console(quiet=True), disturb)


def test_a_stopped_run_saves_and_reports(configure: Configure, tmp_path: Path) -> None:
    assert stopped_run(configure(out=tmp_path / "run"), STEP) == (1, None)
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert digest_holds(data) and data["exit_code"] == 1 and data["outcome"] == "stopped by a violation"
    assert [v["invariant"] for v in data["violations"]] == ["INV-8"] and data["bpb"] is None
    guard = next(g for g in data["guards"] if g["invariant"] == "INV-8")
    assert guard["state"] == "VIOLATED" and guard["worst_step"] == STEP
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "violation")
    assert saved.step == STEP
    events = [row["event"] for row in read_rows(tmp_path / "run" / "ledger.jsonl")]
    assert events.count("violation") == 1
    assert "INV-8 lr-band at step 5 (before the step)" in (tmp_path / "run" / "report.md").read_text()


def test_a_diverged_run_ends_before_the_step(session: Open) -> None:
    run = session("model.gf16=false", policy="observe")

    def poison(step: int) -> None:
        if step == STEP:
            with torch.no_grad():
                run.model.embedding.weight[0, 0] = float("nan")

    with pytest.raises(Diverged, match="at step 5"):
        train(run, lambda: True, poison)
    assert run.progress.step == STEP
