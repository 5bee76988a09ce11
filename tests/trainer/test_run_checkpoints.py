"""A run's checkpoints: best and final are what they say, losses are those of the log, a full disk does not end the run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from karat.core.errors import CheckpointError
from karat.core.invariant import Invariant
from karat.core.report import ProofStatus
from karat.invariants.runtime.ledger import read_rows
from karat.invariants.standing import standings
from karat.trainer import opening, session
from karat.trainer.checkpoint import CheckpointSaver, load_checkpoint
from karat.trainer.checkpoint.space import RESERVE
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.evaluate import Interrupted
from karat.trainer.loop import final_loss, train
from karat.trainer.opening import open_session, take_up
from karat.trainer.run import keep_rows_before, resume, start
from karat.trainer.session import Session

SMALL = (
    "steps=8", "batch_size=2", "threads=1", "model.d_model=16", "model.n_layers=1", "model.n_heads=2",
    "model.context=16", "model.nca=false", "eval.bytes=300", "eval.every=2", "asha.r0=1", "optim.warmup=2",
    "checkpoint.every=1", "seed=5",
)  # fmt: skip

Opened = Callable[..., Session]


KNOWN: dict[tuple[str, ...], tuple[ProofStatus, ...]] = {}


def standings_once(invariants: Iterable[Invariant[Any]]) -> tuple[ProofStatus, ...]:
    listed = list(invariants)
    ids = tuple(invariant.id for invariant in listed)
    if ids not in KNOWN:
        KNOWN[ids] = standings(listed)
    return KNOWN[ids]


@pytest.fixture(autouse=True)
def proofs_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proved is not the subject here, and finding it out takes longer than these runs."""
    monkeypatch.setattr(opening, "standings", standings_once)


@pytest.fixture
def opened(text: Path, tmp_path: Path) -> Opened:
    """opened("a=b", out="name"): an open session of a run of eight small steps."""

    def made(*settings: str, out: str = "run") -> Session:
        config = read_config(None, [*SMALL, *settings], policy="warn", data=str(text))
        return open_session(config, tmp_path / out, Console(quiet=True))

    return made


def names(run: Session) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def spoil_from(run: Session, first: int) -> Callable[[int], None]:
    """From that step on the weights are driven away from what was learned, so that evaluations get worse."""

    def disturb(step: int) -> None:
        if step >= first:
            with torch.no_grad():
                run.model.embedding.weight.mul_(10.0)

    return disturb


@pytest.mark.parametrize("background", ["true", "false"])
def test_best_is_the_model_of_the_best_evaluation(opened: Opened, background: str) -> None:
    run = opened(f"checkpoint.background={background}")
    train(run, lambda: True, spoil_from(run, 4))
    run.saver.finish()
    losses = {row["step"]: row["bpb"] for row in run.progress.evaluations}
    assert list(losses) == [1, 2, 3, 4, 6] and min(losses, key=losses.__getitem__) == 4  # rungs at 1 and 3
    assert names(run) == ["best", "step-000006", "step-000007"]
    best = load_checkpoint(run.checkpoints / "best")
    assert best.step == 4 and best.meta is not None and best.meta.validation_loss is not None
    assert (best.meta.validation_loss.step, best.meta.validation_loss.value) == (4, losses[4])
    now = final_loss(run, lambda: True)
    run.objective.load_state_dict(best.model_state)
    assert final_loss(run, lambda: True) == losses[4] < now


def test_a_run_is_not_resumed_with_another_part_of_the_validation_text(opened: Opened) -> None:
    run = opened()
    with pytest.raises(Interrupted):
        train(run, lambda: run.progress.step < 5)
    run.save()
    run.saver.finish()
    checkpoint = load_checkpoint(run.checkpoints / "step-000005")
    with pytest.raises(CheckpointError, match=r"the first 300 of [0-9,]+ bytes .* not on the first 200 of "):
        take_up(opened("eval.bytes=200"), checkpoint)
    older = replace(checkpoint, extra={key: value for key, value in checkpoint.extra.items() if key != "judged_by"})
    again = opened()
    take_up(again, older)
    assert again.progress.step == 5


def test_a_report_says_which_steps_the_log_has_lost(opened: Opened, tmp_path: Path) -> None:
    sets = [*SMALL, "steps=6", f"out={tmp_path / 'lost'}"]
    assert start(read_config(None, sets, policy="warn", data=str(opened().config.data)), Console(quiet=True))[0] == 0
    report = (tmp_path / "lost" / "report.md").read_text(encoding="utf-8")
    assert "not in log.jsonl" not in report
    (tmp_path / "lost" / "log.jsonl").unlink()
    assert resume(tmp_path / "lost", Console(quiet=True))[0] == 0
    report = (tmp_path / "lost" / "report.md").read_text(encoding="utf-8")
    assert "- 6 of 6 steps are not in log.jsonl: rows of it were lost before the run was resumed" in report


def test_a_resumed_run_goes_on_with_its_best(opened: Opened, tmp_path: Path) -> None:
    run = opened()
    with pytest.raises(Interrupted):
        train(run, lambda: run.progress.step < 5, spoil_from(run, 3))
    run.save()
    run.saver.finish()
    best = load_checkpoint(run.checkpoints / "best")
    again = opened()
    take_up(again, load_checkpoint(run.checkpoints / "step-000005"))
    train(again, lambda: True, spoil_from(again, 3))
    again.saver.finish()
    assert best.step == 3 and load_checkpoint(run.checkpoints / "best").step == 3
    assert again.progress.evaluations[-1]["bpb"] > best.meta.validation_loss.value  # type: ignore[union-attr,operator]


def test_the_losses_and_rates_are_those_of_the_log(opened: Opened) -> None:
    """The source's line in the log reset the sums of which the checkpoint then made 0/1 = 0.0."""
    run = opened("checkpoint.keep_last=9", "optim.schedule=cosine")
    with run.console.start(0, 8):  # a line for every tenth of the run
        train(run, lambda: True)
    run.saver.finish()
    rows = list(read_rows(run.out / "log.jsonl"))
    evaluations = {row["step"]: row["bpb"] for row in run.progress.evaluations}
    for step in range(1, 8):
        meta = load_checkpoint(run.checkpoints / f"step-{step:06d}").meta
        assert meta is not None and meta.step == step and meta.training_loss is not None
        assert (meta.training_loss.value, meta.training_loss.step) == (rows[step - 1]["loss"], step - 1)
        assert list(meta.learning_rates.values()) == rows[step - 1]["lr"]
        last = max(done for done in evaluations if done <= step)
        assert meta.validation_loss is not None
        assert (meta.validation_loss.value, meta.validation_loss.step) == (evaluations[last], last)
        assert meta.parameters == sum(p.numel() for p in run.objective.parameters())
        assert (meta.config_digest, meta.data_digest) == (run.config.digest, run.corpus.manifest.digest)
    assert min(row["loss"] for row in rows) > 1


def test_a_thread_a_copy_or_no_checkpoint_at_all_change_no_number(opened: Opened) -> None:
    ends: list[dict[str, Any]] = []
    for number, settings in enumerate(
        (["checkpoint.background=true"], ["checkpoint.background=false"], ["checkpoint.every=100", "checkpoint.keep_best=false"])
    ):  # fmt: skip
        run = opened(*settings, out=str(number))
        train(run, lambda: True)
        run.saver.finish()
        assert run.checkpoints.exists() == (number < 2)
        ends.append({"weights": run.objective.state_dict(), "rows": list(read_rows(run.out / "log.jsonl"))})
        ends[-1]["moments"] = [s["exp_avg_sq"] for s in run.optimizer.state.values()]
    first, *others = ends
    for other in others:
        assert other["rows"] == first["rows"] and len(first["rows"]) == 8
        assert all(torch.equal(other["weights"][name], tensor) for name, tensor in first["weights"].items())
        assert all(map(torch.equal, other["moments"], first["moments"]))


def test_a_run_ends_with_final_and_says_its_loss(text: Path, tmp_path: Path) -> None:
    config = read_config(None, list(SMALL), policy="warn", data=str(text), out=tmp_path / "run")
    code, bpb = start(config, Console(quiet=True))
    folder = tmp_path / "run" / "checkpoints"
    final, best = load_checkpoint(folder / "final"), load_checkpoint(folder / "best")
    assert code == 0 and final.step == 8 and final.meta is not None and final.meta.validation_loss is not None
    assert (final.meta.validation_loss.value, final.meta.validation_loss.step) == (bpb, 8)
    assert sorted(p.name for p in folder.iterdir()) == ["best", "final", "step-000006", "step-000007"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    losses = {row["step"]: row["bpb"] for row in best.extra["progress"]["evaluations"]}
    assert best.step == min(losses, key=losses.__getitem__) and best.step == 8
    assert report["timing"]["of it stalled by checkpoints"] > 0
    assert not [note for note in report["notes"] if "refused" in note]


def test_a_full_disk_does_not_end_the_run_and_is_on_record(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source's monitor warned above 90 % and wrote on; here nothing is written that does not fit, `final` included."""
    asked: list[Path] = []

    def free(folder: Path) -> int:
        asked.append(folder)
        return 2**40 if len(asked) <= 1 else 12_345  # there is room for the first `best`, after the first rung

    monkeypatch.setattr(session, "CheckpointSaver", functools.partial(CheckpointSaver, free=free))
    config = read_config(None, [*SMALL, "checkpoint.every=4"], policy="warn", data=str(text), out=tmp_path / "run")
    code, bpb = start(config, Console())
    folder, err = tmp_path / "run" / "checkpoints", capsys.readouterr().err
    assert bpb is not None and code == 2  # the result is known, but its weights are nowhere
    assert f"{RESERVE:,} in reserve, 12,345 are free" in err and "checkpoint.keep_last=1" in err
    assert sorted(p.name for p in folder.iterdir()) == ["best"] and load_checkpoint(folder / "best").step == 1
    rows = [row for row in read_rows(tmp_path / "run" / "ledger.jsonl") if row["event"] == "checkpoint refused"]
    assert [(row["step"], row["checkpoint"]) for row in rows if row["checkpoint"] != "best"] == [
        (4, "step-000004"), (8, "final"), (8, "final"),
    ]  # fmt: skip
    assert all(row["free"] == 12_345 and row["needed"] > 10_000 for row in rows)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["outcome"] == "finished, but there was no room for its final weights"
    assert [note for note in report["notes"] if "a checkpoint was refused" in note] == [
        f"a checkpoint was refused: {row['reason']}" for row in rows
    ]


def test_a_refusal_stays_on_record_when_the_run_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    rows = [
        {"event": event, "step": step} for step in (3, 4, 5) for event in ("checkpoint refused", "check", "violation")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep_rows_before(path, 4)
    assert [(row["event"], row["step"]) for row in read_rows(path)] == [
        ("checkpoint refused", 3), ("check", 3), ("violation", 3), ("checkpoint refused", 4), ("check", 4),
    ]  # fmt: skip


def test_an_error_of_the_thread_ends_the_run(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened()

    def broken(*given: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("karat.trainer.checkpoint.storage.write_file", broken)
    with pytest.raises(Exception, match="Input/output error"):
        train(run, lambda: True)
    assert 1 <= run.progress.step <= 2
