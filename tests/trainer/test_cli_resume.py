"""The command `trainer resume`: after a signal or a loss of files bit for bit, and never a run that is another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from karat.invariants.runtime.ledger import read_rows
from karat.trainer.cli import main

Trainer = Callable[..., int]
Weights = Callable[[str], bytes]


def test_resume_is_bit_for_bit(
    tiny: Trainer, tmp_path: Path, model_bytes: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny(out="whole") == 0
    whole = capsys.readouterr().out
    assert tiny("checkpoint.keep_best=false", out="cut") == 0
    run = tmp_path / "cut"
    for name in ("final", "step-000006"):
        os.rename(run / "checkpoints" / name, tmp_path / name)
    (run / "report.json").unlink()
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    assert capsys.readouterr().out == whole
    assert model_bytes("cut") == model_bytes("whole")
    assert [row["step"] for row in read_rows(run / "log.jsonl")] == list(range(9))
    ours, theirs = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("cut", "whole"))
    assert ours["guards"] == theirs["guards"] and ours["rungs"] == theirs["rungs"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint(damage: str, tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny() == 0
    run = tmp_path / "run"
    for folder in (run / "checkpoints").iterdir():
        path = folder / "model.safetensors"
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:-7] if damage == "truncated" else content[:-7] + b"\x01" + content[-6:])
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert "no complete checkpoint" in err and "model.safetensors" in err and "Traceback" not in err


def test_a_checkpoint_of_another_model(tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny() == 0
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("d_model = 32", "d_model = 64"))
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "model.d_model" in capsys.readouterr().err


def test_resume_of_other_data(text: Path, tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(text.read_bytes())
    assert main(["run", "--policy", "strict", "--out", str(tmp_path / "run"), "--data", str(mine), "--set", "steps=2",
                 "--set", "model.d_model=32", "--set", "model.context=32", "--set", "eval.bytes=500"]) == 0  # fmt: skip
    mine.write_bytes(text.read_bytes()[:-40])
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "is not what this run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"), [('policy = "strict"', 'policy = "warn"'), ("n = 10", "n = 9"), ("gap = 2.0", "gap = 1.0")]
)
def test_resume_under_other_guards_is_refused(
    old: str, new: str, tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny() == 0
    config = tmp_path / "run" / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "not as declared when this run began" in capsys.readouterr().err


def test_damaged_logs_are_cut_back_on_resume(tiny: Trainer, tmp_path: Path) -> None:
    assert tiny("checkpoint.keep_best=false") == 0
    run = tmp_path / "run"
    whole = (run / "log.jsonl").read_bytes()
    os.rename(run / "checkpoints" / "final", tmp_path / "final")
    (run / "log.jsonl").write_bytes(whole[:-30] + b"\xff\xfe garbage\n[]\n{}\n" + b"[" * 200_000 + b"\n")
    assert main(["resume", str(run)]) == 0
    assert (run / "log.jsonl").read_bytes() == whole
    phases = [row["phase"] for row in read_rows(run / "ledger.jsonl")]
    assert phases == ["before the first step", "at a rung", "at the end"]


def test_resume_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_cleanly_and_resume_matches(
    number: signal.Signals,
    text: Path,
    tiny: Trainer,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    model_bytes: Weights,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tiny("steps=40", out="whole") == 0
    run = tmp_path / "cut"
    sets = [part for setting in (*tiny_settings, "steps=40") for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "karat.trainer",
        "run",
        "--policy",
        "strict",
        "--data",
        str(text),
        "--out",
        str(run),
    ]
    process = subprocess.Popen([*command, *sets], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "checkpoints" / "step-000003").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the run ended before the signal arrived")
    assert process.returncode == 2 and out == "" and f"interrupted by {number.name}" in err and "trainer resume" in err
    assert main(["resume", str(run)]) == 0
    assert model_bytes("cut") == model_bytes("whole")
    assert json.loads((run / "report.json").read_text())["outcome"] == "finished, every guard held"
