"""A save appears whole or not at all: a full disk, a refused folder or a crash at any moment leaves old or new."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from karat.core.errors import StorageError
from karat.trainer.checkpoint import latest_checkpoint, load_checkpoint, storage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- retention -----------------------------------------------------------------------------------------------------


def test_exactly_keep_last_remain_and_named_ones_stay(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 2, name="violation")
    for step in range(1, 6):
        run.save(tmp_path, step, keep_last=2)
    run.save(tmp_path, 5, name="final", keep_last=1)
    assert names(tmp_path) == ["final", "step-000004", "step-000005", "violation"]
    run.save(tmp_path, 6, keep_last=1)
    assert names(tmp_path) == ["final", "step-000006", "violation"]


def test_the_one_just_written_stays_even_if_it_is_behind(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 8, keep_last=2)
    run.save(tmp_path, 9, keep_last=2)
    run.save(tmp_path, 1, keep_last=2)
    assert names(tmp_path) == ["step-000001", "step-000009"]


def test_a_damaged_one_does_not_push_out_a_complete_one(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 8)
    (run.save(tmp_path, 9) / "state.json").write_bytes(b"")
    run.save(tmp_path, 10, keep_last=2)
    assert names(tmp_path) == ["step-000008", "step-000010"]


def test_saving_a_step_again_replaces_it(tmp_path: Path, make_run: Any) -> None:
    run = make_run()
    run.save(tmp_path, 3, extra={"loss": 1.0})
    path = run.save(tmp_path, 3, extra={"loss": 2.0})
    assert names(tmp_path) == ["step-000003"] and load_checkpoint(path).extra == {"loss": 2.0}


@pytest.mark.parametrize(
    "given", [{"step": -1}, {"keep_last": 0}, {"name": "step-1"}, {"name": "../x"}, {"name": ".x"}, {"name": ""}]
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, make_run: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|lower-case"):
        make_run().save(tmp_path, **({"step": 1} | given))


# -- the system refuses --------------------------------------------------------------------------------------------


def full_disk_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Half of the file `name` is written, then no space is left."""
    write = storage.write_file

    def write_half(path: Path, content: bytes) -> None:
        if path.name != name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(storage, "write_file", write_half)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "meta.json", "manifest.json"]
)
def test_a_full_disk_leaves_the_old_ones_and_nothing_else(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = make_run()
    for step in (1, 2):
        run.save(tmp_path, step, keep_last=2)
    with monkeypatch.context() as patch:
        full_disk_at(patch, name)
        for step in (2, 3):  # one that would replace, one that would be new
            with pytest.raises(StorageError) as raised:
                run.save(tmp_path, step, keep_last=1)
            assert "No space left on device" in raised.value.seen and f"step-00000{step}" in raised.value.seen
            assert raised.value.required and raised.value.next_step
            assert names(tmp_path) == ["step-000001", "step-000002"]
    for step in (1, 2):
        assert load_checkpoint(tmp_path / f"step-00000{step}").step == step
    run.save(tmp_path, 3, keep_last=3)
    assert len(names(tmp_path)) == 3


def test_a_place_that_is_a_file_is_refused(tmp_path: Path, make_run: Any) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="was not written: Not a directory"):
        make_run().save(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(StorageError, match="was not written: File exists"):
        make_run().save(tmp_path / "file", 1)
    assert (tmp_path / "file").read_text() == "mine"


def test_no_permission_is_a_storage_error(tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="was not written: Permission denied"):
        make_run().save(tmp_path, 1)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_run().save(tmp_path, 1)
    assert names(tmp_path) == []


def test_a_disk_that_fails_to_flush_the_rename_gets_the_old_one_back(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    run.save(tmp_path, 1, extra={"loss": 1.0})

    def fail_on_parent(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(storage, "sync_folder", fail_on_parent)
    for step in (1, 2):
        with pytest.raises(StorageError, match="Input/output error"):
            run.save(tmp_path, step, extra={"loss": 2.0})
        assert names(tmp_path) == ["step-000001"]
    assert load_checkpoint(tmp_path / "step-000001").extra == {"loss": 1.0}


def test_every_file_and_folder_is_flushed_before_the_rename(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    make_run().save(tmp_path, 1)
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "meta.json", "manifest.json"]
    assert events == [*files, ".partial-step-000001", "rename", tmp_path.name]


# -- a crash at any moment -----------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops: nothing that comes after it reaches the disk."""


@contextmanager
def crashing(moment: int) -> Iterator[None]:
    """The machine stops at the file operation number `moment`, a write and a removal half done."""
    count = 0

    def dead() -> bool:
        nonlocal count
        count += 1
        return count > moment

    rename, mkdir, write, rmtree = Path.rename, Path.mkdir, storage.write_file, shutil.rmtree

    def crash_rename(path: Path, target: Path) -> Path:
        if dead():
            raise Crash
        return rename(path, target)

    def crash_mkdir(path: Path, *given: Any, **named: Any) -> None:
        if dead():
            raise Crash
        mkdir(path, *given, **named)

    def crash_write(path: Path, content: bytes) -> None:
        if dead():
            if count == moment + 1:
                write(path, content[: len(content) // 2])
            raise Crash
        write(path, content)

    def crash_rmtree(path: Path, ignore_errors: bool = False) -> None:
        if dead():
            if count == moment + 1 and path.exists():
                min(path.iterdir()).unlink()
            raise Crash
        rmtree(path, ignore_errors=ignore_errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", crash_rename)
        patch.setattr(Path, "mkdir", crash_mkdir)
        patch.setattr(storage, "write_file", crash_write)
        patch.setattr(shutil, "rmtree", crash_rmtree)
        yield


@pytest.mark.parametrize("step", [2, 3], ids=["replacing", "new"])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, make_run: Any, step: int) -> None:
    run = make_run()
    outcomes = []
    for moment in range(100):
        folder = tmp_path / str(moment)
        for old in (1, 2):
            run.save(folder, old, extra={"set": "old"}, keep_last=2)
        try:
            with crashing(moment):
                run.save(folder, step, extra={"set": "new"}, keep_last=2)
            finished = True
        except Crash:
            finished = False
        found = latest_checkpoint(folder)
        assert found.damaged == ()
        checkpoint = load_checkpoint(found.path)
        outcomes.append(checkpoint.extra["set"])
        assert checkpoint.step == (step if outcomes[-1] == "new" else 2)
        assert all(load_checkpoint(folder / name).path for name in names(folder) if name.startswith("step"))
        run.save(folder, 9, keep_last=3)
        assert f"step-{checkpoint.step:06d}" in names(folder)
        assert not [name for name in names(folder) if name.startswith(".")]
        assert all(load_checkpoint(folder / name).path for name in names(folder))
        assert load_checkpoint(latest_checkpoint(folder).path).step == 9
        if finished:
            break
    assert finished and outcomes == sorted(outcomes, reverse=True)  # old, …, old, new, …, new
    assert {"old", "new"} == set(outcomes) and len(outcomes) >= 8
