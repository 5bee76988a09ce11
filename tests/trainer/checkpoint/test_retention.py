"""Exactly keep_last step folders, `best` and `final`, at every moment; `best` is of the best evaluation, nothing else."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from karat.core.errors import StorageError
from karat.trainer.checkpoint import Meta, load_checkpoint, measured, storage
from karat.trainer.checkpoint.manifest import MANIFEST


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def evaluate(saver: Any, run: Any, step: int, loss: float | None, name: str | None = None) -> None:
    """One evaluation and one save after it, as a run makes them."""
    saver.evaluated(step, loss)
    saver.save(run.draft(step, meta=Meta(step=step, validation_loss=measured(loss, step))), name)


# -- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_never_more_than_keep_last_are_to_be_seen_and_exactly_they_after_each_save(
    tmp_path: Path, make_run: Any, make_saver: Any, background: bool, keep_last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source kept one more: it deleted down to keep_last, then wrote."""
    folder, seen = tmp_path / "checkpoints", []
    rename = Path.rename

    def noted(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        seen.append([name for name in names(folder) if name.startswith("step-")])
        return moved

    monkeypatch.setattr(Path, "rename", noted)
    run, saver = make_run(), make_saver(background=background, keep_last=keep_last)
    for step in range(1, 7):
        saver.save(run.draft(step))
        saver.finish()
        assert names(folder) == [f"step-{k:06d}" for k in range(max(1, step - keep_last + 1), step + 1)]
    assert len(seen) >= 6 and max(map(len, seen)) == keep_last


def test_nothing_leaves_before_the_new_one_is_complete(
    tmp_path: Path, make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source deleted, then wrote: a crash in between cost a checkpoint."""
    run, saver, folder = make_run(), make_saver(background=False, keep_last=1), tmp_path / "checkpoints"
    saver.save(run.draft(1))
    write, held = storage.write_file, []

    def noted(path: Path, content: Any) -> None:
        held.append(load_checkpoint(folder / "step-000001").step)
        write(path, content)
        held.append(load_checkpoint(folder / "step-000001").step)

    monkeypatch.setattr(storage, "write_file", noted)
    saver.save(run.draft(2))
    assert held == [1] * 10 and names(folder) == ["step-000002"]


def test_a_damaged_one_leaves_before_an_older_whole_one(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run, saver, folder = make_run(), make_saver(background=False, keep_last=2), tmp_path / "checkpoints"
    for step in (1, 2):
        saver.save(run.draft(step))
    cut = folder / "step-000002" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    saver.save(run.draft(3))
    assert names(folder) == ["step-000001", "step-000003"]


def test_what_cannot_move_in_leaves_the_old_ones(
    tmp_path: Path, make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saver, folder = make_run(), make_saver(background=False), tmp_path / "checkpoints"
    for step in (1, 2):
        saver.save(run.draft(step))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if target.name == "step-000003":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(StorageError, match="Input/output error"):
            saver.save(run.draft(3))
    assert names(folder) == ["step-000001", "step-000002"]
    assert [load_checkpoint(folder / name).step for name in names(folder)] == [1, 2]


def test_named_ones_stay_beside_them(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run, saver = make_run(), make_saver(keep_last=2)
    for step in range(1, 5):
        evaluate(saver, run, step, 3.0 - step if step < 3 else 5.0)
    evaluate(saver, run, 4, 5.0, "final")
    saver.finish()
    assert names(tmp_path / "checkpoints") == ["best", "final", "step-000003", "step-000004"]
    assert saver.kept == {"step-000001": 1, "step-000002": 2, "step-000003": 3, "step-000004": 4, "best": 2, "final": 4}


# -- the best ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_best_is_the_state_of_the_lowest_loss_and_no_alias_of_what_came_after(
    tmp_path: Path, make_run: Any, make_saver: Any, background: bool
) -> None:
    """A "best" that refers to the live weights is the last state under another name."""
    run, saver = make_run(), make_saver(background=background)
    states = {}
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.5, math.nan, None, -math.inf), start=1):
        run.train(step - 1, step)
        states[step] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        evaluate(saver, run, step, loss)
    saver.finish()
    best = load_checkpoint(tmp_path / "checkpoints" / "best")
    assert best.step == 2 and best.meta == Meta(step=2, validation_loss=measured(2.0, 2))
    assert all(torch.equal(best.model_state[name], tensor) for name, tensor in states[2].items())
    assert not torch.equal(best.model_state["hidden.weight"], states[7]["hidden.weight"])


def test_best_is_of_the_step_that_was_evaluated_or_not_written(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run, saver = make_run(), make_saver(background=False)
    saver.evaluated(1, 2.0)
    saver.save(run.draft(2))  # another state: it is not what was evaluated
    assert names(tmp_path / "checkpoints") == ["step-000002"] and not saver.best_due


@pytest.mark.parametrize("loss", [1.5, 2])
def test_best_survives_a_resume(tmp_path: Path, make_run: Any, make_saver: Any, loss: float) -> None:
    run = make_run()
    before = make_saver()
    evaluate(before, run, 1, loss)
    before.finish()
    after = make_saver()
    evaluate(after, run, 2, 2.0)
    after.finish()
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 1
    evaluate(after, run, 3, 1.4)
    after.finish()
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 3


def test_a_damaged_best_is_said_and_replaced(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run, said = make_run(), []
    before = make_saver(background=False)
    evaluate(before, run, 1, 1.0)
    (tmp_path / "checkpoints" / "best" / MANIFEST).write_bytes(b"{}")
    after = make_saver(background=False, say=said.append)
    assert len(said) == 1 and "passed over" in said[0] and "best" in said[0]
    evaluate(after, run, 2, 4.0)
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 2


def test_a_best_that_stepped_aside_in_a_crash_is_found(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run = make_run()
    evaluate(make_saver(background=False), run, 1, 1.0)
    folder = tmp_path / "checkpoints"
    (folder / "best").rename(folder / ".replaced-best")
    after = make_saver(background=False)
    evaluate(after, run, 2, 4.0)
    assert load_checkpoint(folder / "best").step == 1


def test_without_keep_best_there_is_none(tmp_path: Path, make_run: Any, make_saver: Any) -> None:
    run, saver = make_run(), make_saver(background=False, keep_best=False)
    evaluate(saver, run, 1, 1.0)
    assert names(tmp_path / "checkpoints") == ["step-000001"]


def test_a_better_one_while_the_last_is_written(
    tmp_path: Path, make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss counts from when its write began: a worse one in the meantime does not take the place."""
    run, saver, go_on = make_run(), make_saver(), threading.Event()
    write = storage.write_file

    def slow(path: Path, content: Any) -> None:
        assert go_on.wait(10)
        write(path, content)

    monkeypatch.setattr(storage, "write_file", slow)
    evaluate(saver, run, 1, 2.0)
    saver.evaluated(2, 2.2)
    assert not saver.best_due
    saver.evaluated(2, 1.8)
    assert saver.best_due
    go_on.set()
    saver.save(run.draft(2))
    saver.finish()
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 2
