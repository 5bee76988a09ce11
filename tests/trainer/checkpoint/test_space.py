"""What a checkpoint needs is known to the byte; one that does not fit is refused before, or while, it is written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from children import CANNOT, code_of, forked, mount_tiny

from karat.trainer.checkpoint import CheckpointSaver, NoRoom, capture_rng, draft, load_checkpoint, storage
from karat.trainer.checkpoint.space import RESERVE, FreeBytes, free_bytes, require_room


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("steps", [0, 3])
def test_the_size_is_known_to_the_byte(tmp_path: Path, make_run: Any, steps: int) -> None:
    run = make_run()
    run.train(0, steps)
    made = run.draft(steps, extra={"text": "ü" * 50}, settings={"model.d_model": 6})
    path = run.save(tmp_path, steps, extra={"text": "ü" * 50}, settings={"model.d_model": 6})
    assert made.size == bytes_in(path)


def test_the_size_is_known_before_a_tensor_is_touched(make_run: Any) -> None:
    state = make_run().state(1)
    huge = {"w": torch.empty(10**6, 10**6, device="meta")}
    assert 4 * 10**12 < draft(**(state | {"model_state": huge})).size < 4 * 10**12 + 200_000


def test_one_byte_too_few_is_refused_and_one_more_is_enough(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 1)
    needed = run.draft(2).size + RESERVE
    with pytest.raises(NoRoom) as raised:
        run.save(tmp_path, 2, keep_last=1, free=lambda folder: needed - 1)
    assert (raised.value.needed, raised.value.free) == (needed - RESERVE, needed - 1)
    for part in (f"it needs {needed - RESERVE:,} bytes", f"{RESERVE:,} in reserve", f"{needed - 1:,} are free"):
        assert part in raised.value.seen
    assert raised.value.required and raised.value.next_step and names(tmp_path) == ["step-000001"]
    assert run.save(tmp_path, 2, keep_last=1, free=lambda folder: needed).name == "step-000002"


def test_what_the_new_one_replaces_does_not_count_as_free(tmp_path: Path, make_run: Any) -> None:
    """Otherwise the old one would have to go first."""
    run = make_run()
    path = run.save(tmp_path, 1)
    with pytest.raises(NoRoom):
        run.save(tmp_path, 1, free=lambda folder: RESERVE)
    assert load_checkpoint(path).step == 1


def test_a_system_that_does_not_say_is_not_believed_to_be_full(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    for answer in (lambda path: usage(0, 0, 0), lambda path: os.stat(tmp_path / "absent")):
        monkeypatch.setattr(shutil, "disk_usage", answer)
        assert free_bytes(tmp_path) is None
    assert make_run().save(tmp_path, 1).exists()


def test_the_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source asked of the folder itself, which does not exist before the first save, and took no answer for room."""
    asked: list[Path] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    assert free_bytes(tmp_path / "runs" / "0001" / "checkpoints") == usage.free and asked == [tmp_path]
    monkeypatch.chdir(tmp_path)
    assert free_bytes(Path("runs/0001")) == usage.free and asked == [tmp_path, tmp_path]


def test_two_that_are_written_together_need_room_for_both(
    tmp_path: Path, make_run: Any, make_saver: Any, refusals: Any
) -> None:
    run = make_run()
    size = run.draft(1).size
    for room, kept in ((2 * size, ["best", "step-000001"]), (2 * size - 1, ["step-000001"]), (size - 1, [])):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        saver = make_saver(background=False, free=lambda folder, room=room: room + RESERVE)
        saver.evaluated(1, 2.0)
        saver.save(run.draft(1))
        assert sorted(saver.kept) == kept
    assert refusals.names == [(1, "best"), (1, "step-000001"), (1, "best")]
    with pytest.raises(NoRoom, match="of which 7 are for one that comes before"):
        require_room(tmp_path / "best", 5, lambda folder: 1, before=7)


@pytest.mark.parametrize("background", [False, True])
def test_a_refused_save_is_told_and_the_run_goes_on(
    tmp_path: Path, make_run: Any, make_saver: Any, refusals: Any, background: bool
) -> None:
    run, saver = make_run(), make_saver(background=background)
    for step, room in ((1, 2**40), (2, 2**40), (3, 0), (4, RESERVE), (5, 2**40)):
        saver.free = lambda folder, room=room: room
        saver.save(run.draft(step))
        assert step != 4 or saver.finish() or names(tmp_path / "checkpoints") == ["step-000001", "step-000002"]
    saver.finish()
    assert refusals.names == [(3, "step-000003"), (4, "step-000004")]
    assert names(tmp_path / "checkpoints") == ["step-000002", "step-000005"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_a_quota_or_a_limit_that_is_met_midway_is_a_refusal(
    tmp_path: Path, make_run: Any, make_saver: Any, refusals: Any, number: int, background: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, saver = make_run(), make_saver(background=background)
    saver.evaluated(1, 2.0)
    saver.save(run.draft(1))
    saver.finish()

    def full(path: Path, content: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_file", full)
        saver.evaluated(2, 1.0)
        saver.save(run.draft(2))
        saver.finish()
    assert refusals.names == [(2, "step-000002"), (2, "best")] and os.strerror(number) in refusals.rows[0][2].seen
    assert names(tmp_path / "checkpoints") == ["best", "step-000001"]
    saver.evaluated(3, 1.5)  # lower than what is kept, though not than what was refused
    saver.save(run.draft(3))
    saver.finish()
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 3


# -- a system that is really full ----------------------------------------------------------------------------------


def saves(folder: Path, told: Path, free: FreeBytes, limit: int = 0) -> None:
    """Two small checkpoints, two of 4 MB, a small one; each refusal and what is there after each go to a file."""

    def refused(step: int, error: NoRoom) -> None:
        tell(step, error.target.name, error.free, error.seen.split(": ")[-1])

    def tell(*parts: object) -> None:
        with told.open("a") as file:
            print(*parts, sep="|", file=file)

    saver = CheckpointSaver(folder, keep_last=1, refused=refused, free=free)
    for step, parts in ((1, 1), (2, 1), (3, 100), (4, 100), (5, 1)):
        if step == 3 and limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        model = {str(part): torch.full((10_000,), float(step)) for part in range(parts)}
        state: dict[str, Any] = {"model_state": model, "optimizer_state": {}, "extra": {}}
        saver.save(draft(step=step, rng=capture_rng(), config_digest="", **state))
        saver.finish()
        tell(step, *names(folder))


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """What a quota looks like from a process: the system refuses in the middle of a file."""
    told = tmp_path / "told"
    assert code_of(forked(lambda: saves(tmp_path / "checkpoints", told, free_bytes, limit=100_000))) == 0
    why = "None|File too large; what was there before is untouched"
    assert told.read_text().splitlines() == [
        "1|step-000001", "2|step-000002", f"3|step-000003|{why}", "3|step-000002",
        f"4|step-000004|{why}", "4|step-000002", "5|step-000005",
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [True, False])
def test_a_tiny_file_system(tmp_path: Path, asked: bool) -> None:
    """Of 10 MiB, which leave room for small ones beside the reserve; or of 3 MiB, the free space not being asked for."""
    told, folder = tmp_path / "told", tmp_path / "tiny"
    folder.mkdir()

    def work() -> None:
        mount_tiny(folder, "10m" if asked else "3m")
        saves(folder / "checkpoints", told, free_bytes if asked else lambda folder: None)

    code = code_of(forked(work))
    if code == CANNOT:
        pytest.skip("no file system can be mounted here")
    lines = told.read_text().splitlines()
    assert code == 0 and [line for line in lines if line.count("|") == 1] == [
        "1|step-000001", "2|step-000002", "3|step-000002", "4|step-000002", "5|step-000005",
    ]  # fmt: skip
    refused = [line.split("|") for line in lines if line.count("|") == 3]
    assert [(step, name) for step, name, _, _ in refused] == [("3", "step-000003"), ("4", "step-000004")]
    for _, _, free, why in refused:
        assert (8_000_000 < int(free) < 10 * 2**20) if asked else why.startswith("No space left on device")
