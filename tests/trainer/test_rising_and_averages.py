"""INV-1 and INV-6 on live runs: clean twins raise no alarm, faults do, and a resumed run looks at the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from karat.invariants import inv06_ema_decay as inv06
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.probes import decay_plan, smoothed_loss, weight_average
from karat.trainer.checkpoint import load_checkpoint
from karat.trainer.cli import main
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import averaged_loss, check_end, final_loss, train
from karat.trainer.opening import open_session
from karat.trainer.session import Session

Open = Callable[..., Session]
Trainer = Callable[..., int]
SHORT = ("descent.window=20", "steps=110", "model.nca=false", "model.gf16=false", "model.streams=1", "optim.warmup=5")


@pytest.fixture
def session(text: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Open:
    """session("a=b", policy="strict"): an open session of the tiny configuration."""

    def opened(*settings: str, policy: str = "strict") -> Session:
        config = read_config(None, [*tiny_settings, *settings], policy=policy, data=str(text))
        return open_session(config, tmp_path, Console(quiet=True))

    return opened


# -- INV-1 ---------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_not_called_rising(session: Open) -> None:
    run = session(*SHORT)
    train(run, lambda: True)
    check_end(run)
    guard = run.monitor.guards["INV-1"]
    assert guard.checks == 110 - 40 + 1 and not run.monitor.violations and guard.worst_margin > 0


def test_a_rate_that_jumps_is_caught_while_the_loss_is_finite(session: Open) -> None:
    run = session(*SHORT, policy="observe")

    def disturb(step: int) -> None:
        if step >= 60:
            for group in run.optimizer.param_groups:
                group["lr"] *= 40

    train(run, lambda: True, disturb)
    risen = [v for v in run.monitor.violations if v.invariant == "INV-1"]
    assert risen and 60 < risen[0].step <= 85 and risen[0].margin is not None
    assert "later mean = " in risen[0].observed


def test_scrambled_weights_are_caught_and_stop_a_strict_run(session: Open) -> None:
    run = session(*SHORT)

    def disturb(step: int) -> None:
        if step == 70:
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in run.model.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.5)

    with pytest.raises(Stopped, match="INV-1 descent violated at step"):
        train(run, lambda: True, disturb)
    assert 70 < run.progress.step <= 90  # within the later window: its own variance makes a jump less plain at first


def test_a_short_run_has_no_windows_and_says_so(tiny: Trainer, tmp_path: Path) -> None:
    assert tiny() == 0
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    assert any(
        n.startswith("INV-1 descent: not on duty, the run is shorter than three of its windows (9 steps") for n in notes
    )


def test_the_probe_compares_the_two_halves() -> None:
    values = smoothed_loss([3.0, 5.0, 1.0, 2.0]).values({})
    assert values == {"early_mean": 4.0, "early_variance": 2.0, "late_mean": 1.5, "late_variance": 0.5}


# -- INV-6 ---------------------------------------------------------------------------------------------------------


def test_averages_are_guarded_at_every_step(session: Open) -> None:
    run = session("ema.hull_every=2")
    train(run, lambda: True)
    check_end(run)
    guard = run.monitor.guards["INV-6"]
    assert guard.checks == 10 and guard.violations == 0 and run.average is not None
    assert run.average.used == run.config.decay(8)
    raw, averaged = final_loss(run, lambda: True), averaged_loss(run, lambda: True)
    assert averaged is not None and averaged != raw and final_loss(run, lambda: True) == raw


def stuck(run: Session) -> None:
    assert run.average is not None
    run.average.decay = lambda step: inv06.DEFAULT.ends[0]


def beyond(run: Session) -> None:
    assert run.average is not None
    run.average.decay = lambda step: 1.001


def leaping(run: Session) -> None:
    assert run.average is not None
    run.average.move = lambda a, w, *_: a.copy_(w + 1)  # type: ignore[method-assign, assignment, misc]


def poisoned(run: Session) -> None:
    assert run.average is not None
    next(iter(run.average.averages.values())).fill_(float("nan"))


@pytest.mark.parametrize(
    ("fault", "observed"),
    [(stuck, "decay = 0.996,"), (beyond, "decay = 1.001"), (leaping, "outside = 1"), (poisoned, "outside = nan")],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_faulty_average_stops_the_run_at_the_next_step(
    fault: Callable[[Session], None], observed: str, session: Open
) -> None:
    run = session("ema.hull_every=1")

    def disturb(step: int) -> None:
        if step == 5:
            fault(run)

    with pytest.raises(Stopped, match="INV-6 ema-decay violated at step 6") as stopped:
        train(run, lambda: True, disturb)
    assert observed in str(stopped.value) and run.progress.step == 6


def test_a_faulty_plan_is_refused_before_the_first_step() -> None:
    low, high = inv06.DEFAULT.ends

    def judged(*decays: float) -> bool:
        return not inv06.INVARIANT.judge(decay_plan(decays, inv06.DEFAULT).values({})).violated

    assert judged(low, 0.998, high)
    assert not judged(low, low, low) and not judged(low, 0.999, 0.998, high) and not judged(0.997, high)
    assert not judged(low, 0.99, high)


def test_the_probe_reports_the_worst_average() -> None:
    reading = weight_average(0.998, 0.998, 0.997, torch.zeros(3))
    assert reading.values({"outside": [0.0, 0.5, 0.1]})["outside"] == 0.5
    worst: Any = reading.values({"outside": [0.0, float("nan"), 0.1]})["outside"]
    assert worst != worst


def test_no_averages_no_guard_and_the_weights_do_not_notice(tiny: Trainer, tmp_path: Path) -> None:
    assert tiny(out="on") == 0 and tiny("ema.enabled=false", out="off") == 0
    on, off = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("on", "off"))
    assert on["bpb"] == off["bpb"] and on["weights"] == off["weights"] and on["averaged_bpb"] is not None
    assert off["averaged_bpb"] is None and "INV-6" not in [g["invariant"] for g in off["guards"]]
    assert f"the averaged weights {on['averaged_bpb']:.4f}" in (tmp_path / "on" / "report.md").read_text()


# -- both, resumed -------------------------------------------------------------------------------------------------


def test_a_resumed_run_takes_up_windows_and_averages_bit_for_bit(tiny: Trainer, tmp_path: Path) -> None:
    settings = ("steps=20", "descent.window=4", "checkpoint.every=5", "checkpoint.keep_last=9", "ema.hull_every=3",
                "checkpoint.keep_best=false")  # fmt: skip
    assert tiny(*settings) == 0
    run = tmp_path / "run"
    whole, rows = load_checkpoint(run / "checkpoints" / "final"), list(read_rows(run / "log.jsonl"))
    bpb = json.loads((run / "report.json").read_text())["averaged_bpb"]
    for name in ("final", "step-000015", "report.json"):
        path = run / "checkpoints" / name if name != "report.json" else run / name
        path.rename(tmp_path / name)
    assert main(["resume", str(run)]) == 0
    again = load_checkpoint(run / "checkpoints" / "final")
    assert again.extra["progress"]["recent"] == whole.extra["progress"]["recent"]
    assert len(again.extra["progress"]["recent"]) == 8
    ours, theirs = again.extra["average"], whole.extra["average"]
    assert (ours["used"], ours["previous"]) == (theirs["used"], theirs["previous"])
    assert all(torch.equal(ours["averages"][n], theirs["averages"][n]) for n in theirs["averages"])
    resumed = list(read_rows(run / "log.jsonl"))
    assert [r["margins"] for r in resumed] == [r["margins"] for r in rows]
    assert json.loads((run / "report.json").read_text())["averaged_bpb"] == bpb


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ema.start=1.0", "ema.start"),
        ("ema.start=-0.1", "ema.start"),
        ("ema.end=1.5", "ema.end"),
        ("ema.end=0.5", "start must be below end"),
        ("ema.hull_every=0", "ema.hull_every"),
        ("descent.window=1", "descent.window"),
        ("descent.z=0", "descent.z"),
        ("descent.z=1e308", "descent.z: must be less than or equal to 100, got 1e+308"),
        ("descent.tolerance=nan", "descent.tolerance"),
        ("descent.tolerance=1e200", "descent.tolerance: must be less than or equal to 8, got 1e+200"),
        ("ema={start=0.3,end=0.30000000000000004}", "two float64 numbers must lie between start and end"),
        ("ema.start=0.9999999999999999", "such as ema.start=0.996"),
    ],
)
def test_bad_settings(setting: str, message: str, tiny: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny(setting) == 2
    err = capsys.readouterr().err
    assert message in err and "  next      trainer run --print-config" in err


def test_the_narrowest_band_of_the_decay_that_can_rise_is_taken() -> None:
    start = 0.1
    config = RunConfig(steps=9, ema={"start": start, "end": start + 3 * math.ulp(start)})
    assert config.decay(0) < config.decay(9)
    assert read_config(None, ["descent.z=100", "descent.tolerance=8"]).descent.z == 100
