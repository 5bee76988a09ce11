"""The thread writes the state as it was at the call; what goes wrong on it is raised; what ends the process waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import code_of, forked

from karat.core.errors import StorageError
from karat.trainer.checkpoint import CheckpointSaver, background, latest_checkpoint, load_checkpoint, storage
from karat.trainer.checkpoint.background import Background
from karat.trainer.checkpoint.snapshot import Buffers


class Gate:
    """Files are written when it is open; `entered` is set when one is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        write = storage.write_file

        def slow(path: Path, content: Any) -> None:
            self.entered.set()
            assert self.open.wait(10)
            write(path, content)

        monkeypatch.setattr(storage, "write_file", slow)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_the_state_at_the_call(
    tmp_path: Path, make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saver, extra = make_run(), make_saver(), {"rows": [1.0], "average": torch.ones(3)}
    run.train(0, 2)
    expected = files(run.save(tmp_path / "at-once", 2, extra=extra))
    gate = Gate(monkeypatch)
    saver.save(run.draft(2, extra=extra))
    assert gate.entered.wait(10)
    run.train(2, 5)
    extra["rows"].append(2.0)
    extra["average"].zero_()
    gate.open.set()
    saver.finish()
    assert files(tmp_path / "checkpoints" / "step-000002") == expected


def test_a_snapshot_keeps_every_bit_and_its_memory() -> None:
    strange = torch.tensor([0x7FC00001, 0x7F800001, -1, 1, -(2**31)], dtype=torch.int32).view(torch.float32)
    tensors = {"nan": strange, "turned": torch.arange(6.0).view(2, 3).T, "half": torch.ones(3).bfloat16(),
               "scalar": torch.tensor(3), "none": torch.zeros(0), "on": torch.tensor([True, False])}  # fmt: skip
    buffers = Buffers()
    held = buffers.hold("f", tensors)
    for name, tensor in tensors.items():
        assert held[name].is_contiguous() and held[name].dtype == tensor.dtype and held[name].shape == tensor.shape
    assert torch.equal(held["nan"].view(torch.int32), strange.view(torch.int32))
    assert all(torch.equal(held[name], tensors[name]) for name in ("turned", "half", "scalar", "none", "on"))
    places = {name: tensor.data_ptr() for name, tensor in held.items()}
    again = buffers.hold("f", tensors | {"half": torch.zeros(3)})
    assert all(again[name].data_ptr() == places[name] for name in places if name != "half")
    assert again["half"].dtype == torch.float32 and buffers.nbytes == sum(t.nbytes for t in again.values())


def test_one_at_a_time_and_the_wait_is_counted(
    tmp_path: Path, make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saver, gate = make_run(), make_saver(), Gate(monkeypatch)
    saver.save(run.draft(1))
    assert gate.entered.wait(10)
    before = saver.stalled
    opener = threading.Timer(0.2, gate.open.set)
    opener.start()
    saver.save(run.draft(2))
    assert saver.stalled - before >= 0.15 and load_checkpoint(tmp_path / "checkpoints" / "step-000001").step == 1
    saver.finish()
    opener.join()
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000002").step == 2


@pytest.mark.parametrize("where", ["save", "finish"])
def test_an_error_of_the_thread_is_raised_once_at_the_next_save_or_at_the_end(
    make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run, saver = make_run(), make_saver()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        saver.save(run.draft(1))
        with pytest.raises(StorageError, match="step-000001 was not written: Input/output error"):
            saver.save(run.draft(2)) if where == "save" else saver.finish()
    saver.finish()
    assert saver.kept == {}
    saver.save(run.draft(3))
    saver.finish()
    assert saver.kept == {"step-000003": 3}


def test_an_error_that_is_no_error_of_storage_is_raised_too() -> None:
    thread = Background()
    thread.start(lambda: sys.exit("odd"))
    with pytest.raises(SystemExit, match="odd"):
        thread.wait()
    thread.wait()


def test_where_no_thread_is_to_be_had_the_caller_writes(
    make_run: Any, make_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    saver = make_saver()
    saver.save(make_run().draft(1))
    assert saver.kept == {"step-000001": 1}


# -- the end of the process ----------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_leaves_the_older_ones(tmp_path: Path, make_run: Any) -> None:
    run, told, folder = make_run(), tmp_path / "told", tmp_path / "checkpoints"
    write = storage.write_file

    def stuck(path: Path, content: Any) -> None:
        if path.name == "optimizer.safetensors":
            write(path, content[:1])
            told.touch()
            time.sleep(60)
        write(path, content)

    def work() -> None:
        saver = CheckpointSaver(folder, keep_last=2, refused=lambda step, error: None)
        for step in (1, 2):
            saver.save(run.draft(step))
        saver.finish()
        storage.write_file = stuck
        saver.save(run.draft(3))
        saver.finish()

    process = forked(work)
    deadline = time.monotonic() + 20
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert code_of(process) == -signal.SIGKILL
    assert sorted(p.name for p in folder.iterdir()) == [".partial-step-000003", "step-000001", "step-000002"]
    found = latest_checkpoint(folder)
    assert found.step == 2 and found.damaged == () and load_checkpoint(folder / "step-000001").step == 1
    run.save(folder, 4, keep_last=2)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000004"]


INTERPRETER = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("background", sys.argv[1])
background = importlib.util.module_from_spec(spec)
spec.loader.exec_module(background)
thread, how, done = background.Background(), sys.argv[2], pathlib.Path(sys.argv[3])
def job():
    print("writing", flush=True)
    if how == "fails":
        raise OSError("the disk is gone")
    time.sleep(0.3)
    done.touch()
thread.start(job)
if how == "interrupted":
    time.sleep(30)
if how == "raises":
    raise ValueError("the loop broke")
"""
"""An interpreter that has the module alone, which needs no torch: it starts at once."""


def interpreter(how: str, done: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", INTERPRETER, str(background.__file__), how, str(done)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("raises", 1), ("interrupted", -signal.SIGINT)])
def test_the_process_waits_for_the_thread_however_it_ends(tmp_path: Path, how: str, code: int) -> None:
    process = interpreter(how, tmp_path / "done")
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    assert not (tmp_path / "done").exists()
    if how == "interrupted":
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert (tmp_path / "done").exists()


def test_an_error_that_nobody_waited_for_is_told_at_the_end(tmp_path: Path) -> None:
    _, err = interpreter("fails", tmp_path / "done").communicate(timeout=20)
    assert err == "a checkpoint was not written: the disk is gone\n"
