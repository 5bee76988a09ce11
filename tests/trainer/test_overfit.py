"""`trainer run --overfit-one-batch`: 0 when the batch is learnt by heart, 1 when not, and never a result of the model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from karat.trainer.cli import main
from karat.trainer.config_file import read_config
from karat.trainer.data.batches import Batches
from karat.trainer.gate import Finished, NoSample
from karat.trainer.overfit import NEAR_ZERO, Learnt, OneBatch, least_loss
from karat.trainer.report import read_run_report

QUICK = (
    "tokens=bytes", "model.vocab=256", "threads=1", "batch_size=2", "model.d_model=32", "model.n_layers=1",
    "model.n_heads=2", "model.context=16", "model.d_ff=64", "eval.bytes=600",
)  # fmt: skip


def run(text: Path, out: Path, *settings: str, options: tuple[str, ...] = ("--overfit-one-batch",)) -> int:
    sets = [part for setting in (*QUICK, *settings) for part in ("--set", setting)]
    return main(["run", "--preset", "nano", "--data", str(text), "--out", str(out), *options, *sets])


def test_a_batch_that_is_learnt(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(text, tmp_path / "run", "steps=80", "optim.lr=0.01") == 0
    out, err = capsys.readouterr()
    assert out == ""  # no BPB for a script to take as a result
    assert "overfit one batch: the batch was learnt by heart" in err and "saw one batch alone" in err
    report, _ = read_run_report(tmp_path / "run")
    assert report.exit_code == 0 and "the batch was learnt by heart: loss 0.0" in report.outcome
    assert report.bpb is not None and "of a run that saw one batch alone" in report.validation
    assert read_config(tmp_path / "run" / "config.toml", []).overfit_one_batch
    with pytest.raises(NoSample, match="one batch alone"):
        _ = Finished(tmp_path / "run", report, "").bpb


def test_a_batch_that_is_not_learnt(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(text, tmp_path / "run", "steps=4", "overfit_one_batch=true", options=()) == 1
    out, err = capsys.readouterr()
    assert out == "" and "the batch was NOT learnt by heart" in err and "next" in err
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert data["exit_code"] == 1 and "NOT learnt by heart" in data["outcome"]


def test_without_it_the_same_run_is_an_ordinary_one(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(text, tmp_path / "run", "steps=4", options=()) == 0
    assert capsys.readouterr().out.startswith("BPB=")
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "one batch" not in data["validation"] + data["outcome"]


def test_every_step_has_the_batch_of_step_0() -> None:
    batches = Batches(np.arange(200, dtype=np.uint8), 8, 2, 5)
    one = OneBatch(**vars(batches))
    first = batches.batch_at(0)
    assert any(not np.array_equal(batches.batch_at(step)[0], first[0]) for step in (1, 2))
    for step in (0, 1, 2, 1000):
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one.batch_at(step), first, strict=True))
    with pytest.raises(Exception, match="step >= 0"):
        one.batch_at(-1)


def test_the_least_loss_is_that_of_beginnings_that_go_on_in_two_ways() -> None:
    inputs = np.array([[7, 1, 2], [7, 3, 2], [9, 1, 2]])
    targets = np.array([[1, 2, 5], [3, 2, 6], [1, 2, 8]])
    assert least_loss((inputs, targets)) == pytest.approx(2 * math.log(2) / 9)  # after 7: once 1, once 3
    assert least_loss((inputs[:1], targets[:1])) == 0
    assert least_loss((np.array([[7]] * 4), np.array([[1], [1], [1], [2]]))) == pytest.approx(0.5623351446)


def test_the_threshold_is_above_the_least_loss_and_nan_is_not_near() -> None:
    assert Learnt(0.2 + NEAR_ZERO - 1e-6, 0.2).by_heart and not Learnt(0.2 + NEAR_ZERO + 1e-6, 0.2).by_heart
    assert not Learnt(math.nan, 0.0).by_heart and "NOT" in Learnt(math.nan, 0.0).text
