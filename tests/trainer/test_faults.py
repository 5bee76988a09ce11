"""For each invariant on duty: a run whose quantity is really driven out of its domain ends at that very step; its clean twin
does not. Under STRICT parameters and optimizer are left as they were before the step."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as HONEST

from karat.core.golden import PHI
from karat.core.report import digest_holds
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import Stopped
from karat.trainer import run as command
from karat.trainer.checkpoint import load_checkpoint
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import Diverged, check_end, train
from karat.trainer.opening import open_session
from karat.trainer.readings import planned_steps
from karat.trainer.run import start
from karat.trainer.session import Session

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


def attention_over_one_position(run: Session) -> None:
    """The seed's bug: attention is called on sequences of length 1, and what it gives looks like attention."""
    for layer in run.model.attentions():

        def one_by_one(x_BTD: torch.Tensor, honest: Any = layer.forward) -> torch.Tensor:
            result: torch.Tensor = honest(x_BTD.reshape(-1, 1, x_BTD.shape[-1])).view_as(x_BTD)
            return result

        layer.forward = one_by_one  # type: ignore[method-assign]


def zero_part(run: Session, part: int) -> None:
    weight = run.model.attentions()[1].qkv.weight
    with torch.no_grad():
        weight.view(3, -1, weight.shape[1])[part].zero_()


def queries_at_zero(run: Session) -> None:
    zero_part(run, 0)


def keys_of_one_head_at_zero(run: Session) -> None:
    weight = run.model.attentions()[0].qkv.weight
    with torch.no_grad():
        weight.view(3, 2, -1, weight.shape[1])[1, 1].zero_()


def gain_set_from_outside(run: Session) -> None:
    run.model.attentions()[1].gain = 1.0


def gain_one_ulp_too_far(run: Session) -> None:
    layer = run.model.attentions()[0]
    layer.gain = math.nextafter(layer.gain, math.inf)


def no_attention_at_all(run: Session) -> None:
    run.model.attentions()[0].forward = lambda x_BTD: x_BTD  # type: ignore[method-assign]


FAULTS: list[tuple[Callable[[Session], None], str, str]] = [
    (rate_from_outside, "INV-8 lr-band", "lr = 0.02"),
    (leaking_matrix, "INV-11 mhc-doubly-stochastic", "residual <= 1e-06"),
    (identical_streams, "INV-11 mhc-doubly-stochastic", "spread = "),
    (collapsed_grid, "INV-4 nca-entropy-band", "H = 0 nats"),
    (weights_beyond_range, "INV-3 gf16-safe-domain", "max|w| = 5e+09"),
    (vanishing_weights, "INV-3 gf16-safe-domain", "max|w| = "),
    (attention_over_one_position, "INV-9 qk-gain", "spread = 0 "),
    (queries_at_zero, "INV-9 qk-gain", "spread = 0 "),
    (keys_of_one_head_at_zero, "INV-9 qk-gain", "spread = 0 "),
    (gain_one_ulp_too_far, "INV-5 lucas-closure", "g = 2.61803"),
    (no_attention_at_all, "INV-9 qk-gain", "deviation is not finite"),
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


def test_a_gain_set_from_outside_is_seen_by_both_guards_of_it(session: Open) -> None:
    run = session(policy="observe")
    train(run, lambda: True, lambda step: gain_set_from_outside(run) if step == STEP else None)
    assert {(v.invariant, v.step) for v in run.monitor.violations} == {
        (name, step) for name in ("INV-5", "INV-9") for step in range(STEP, 9)
    }
    seen = next(v for v in run.monitor.violations if v.invariant == "INV-9")
    assert "gain = 1," in seen.observed and "phi^2 = 2.618034" in seen.required


def twice(query: torch.Tensor, *others: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    return HONEST(query * float(PHI**2), *others, is_causal=is_causal, scale=scale)


def without_scale(*tensors: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    return HONEST(*tensors, is_causal=is_causal)


def without_mask(*tensors: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    return HONEST(*tensors, scale=scale)


@pytest.mark.parametrize("wrong", [twice, without_scale, without_mask])
def test_scores_that_do_not_have_the_declared_gain_end_the_run(
    wrong: Callable[..., torch.Tensor], session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session()

    def disturb(step: int) -> None:
        if step == STEP:
            monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)

    with pytest.raises(Stopped, match=f"INV-9 qk-gain violated at step {STEP}") as stopped:
        train(run, lambda: True, disturb)
    deviation = re.search(r"deviation = (\S+),", str(stopped.value))
    assert deviation is not None and float(deviation[1]) > 1e-3


def rungs_instead(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """From here on the run holds its rungs at other steps than it declared."""
    monkeypatch.setattr(RunConfig, "rungs", property(lambda config: steps))


@pytest.mark.parametrize(
    ("steps", "where"),
    [
        ((4,), r"at step 4 \(at a rung"),
        ((3, 5), r"at step 5 \(at a rung"),
        ((2, 3), r"at step 2 \(at a rung"),
        ((), r"at step 9 \(at the end"),
    ],
)
def test_rungs_at_other_steps_end_the_run(
    steps: tuple[int, ...], where: str, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session()
    with pytest.raises(Stopped, match=f"INV-10 asha-rungs violated {where}"):
        train(run, lambda: True, lambda step: rungs_instead(monkeypatch, *steps) if step == 0 else None)
        check_end(run)


def test_planned_rungs_that_are_not_declared_end_the_run_before_it_begins(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session()
    rungs_instead(monkeypatch, 3, 6)
    with pytest.raises(Stopped, match="INV-10 asha-rungs violated before the first step") as stopped:
        train(run, lambda: True)
    assert "rungs = [3, 6] steps, steps done = 9" in str(stopped.value)


def test_every_declared_rung_is_judged(session: Open) -> None:
    run = session("asha.r0=1")
    train(run, lambda: True)
    check_end(run)
    assert [rung["step"] for rung in run.progress.rungs] == [1, 3] and run.monitor.guards["INV-10"].checks == 4
    assert run.monitor.guards["INV-10"].worst_margin == 0


@pytest.mark.parametrize(
    ("settings", "on_duty"),
    [
        ((), True),
        (("model.qk_gain=6.854101966249685", "qk.power=4"), True),
        (("model.qk_gain=1.618033988749895", "qk.power=1"), False),
        (("model.qk_gain=1.0", "qk.power=0"), False),
        (("model.qk_gain=0.3819660112501051", "qk.power=-2"), False),
    ],
)
def test_closure_is_on_duty_for_even_golden_powers_alone(
    settings: tuple[str, ...], on_duty: bool, session: Open
) -> None:
    run = session(*settings)
    assert ("INV-5" in run.monitor.guards) is on_duty
    train(run, lambda: True)
    check_end(run)
    assert not run.monitor.violations and not run.monitor.not_exercised()


def test_a_gain_typed_from_memory_ends_the_run_before_a_step_is_taken(session: Open) -> None:
    run = session("model.qk_gain=2.618")
    assert "INV-5" not in run.monitor.guards
    with pytest.raises(Stopped, match="INV-9 qk-gain violated at step 0") as stopped:
        train(run, lambda: True)
    assert "gain = 2.618," in str(stopped.value) and not run.optimizer.state


def test_streams_to_which_nothing_was_added_yet_are_equal_before_the_first_step_alone(session: Open) -> None:
    run = session("model.zero_outputs=true")
    train(run, lambda: True)
    check_end(run)
    assert run.progress.step == 9 and not run.monitor.violations and run.monitor.guards["INV-11"].checks == 10
    stuck = session("model.zero_outputs=true")
    residual = stuck.model.residual
    assert residual is not None
    honest = residual.coefficients

    def uniform() -> Any:
        """Every stream is mixed and fed alike, with gradients of zero."""
        mixing, pre, post = honest()
        return type(honest())(0.25 + 0 * mixing, pre, 1 + 0 * post)

    residual.coefficients = uniform  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="INV-11 mhc-doubly-stochastic violated at step 1"):
        train(stuck, lambda: True)


def test_the_clean_twin_ends_well(session: Open) -> None:
    run = session()
    train(run, lambda: True, lambda step: None)
    assert run.progress.step == 9 and not run.monitor.violations and not run.monitor.not_exercised()
    assert {i: g.checks for i, g in run.monitor.guards.items()} == {
        "INV-2": 2, "INV-3": 9, "INV-4": 9, "INV-5": 10, "INV-6": 9, "INV-8": 10, "INV-9": 9, "INV-10": 2, "INV-11": 9,
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
