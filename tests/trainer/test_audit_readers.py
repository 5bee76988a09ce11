"""The readers of `trainer audit`: one log in every format, and what each says of what it does not understand."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from karat.core.run_log import RunLog, canonical, digits_of
from karat.invariants.run.spec import Schedule, read_spec
from karat.trainer.audit.assemble import UnreadableLog, number
from karat.trainer.audit.declarations import declared_in_text, of_spec
from karat.trainer.audit.read import read_log
from karat.trainer.audit.tensorboard import crc32c, masked
from karat.trainer.cli import main

ROWS = [(10, 3.5, 0.001), (20, 3.25, 0.002), (30, 3.0, 0.0015), (40, 2.75, 0.001)]


def jsonl(path: Path) -> Path:
    path = path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": x, "lr": [lr, lr / 2]}) + "\n" for s, x, lr in ROWS))
    return path


def comma(path: Path) -> Path:
    path = path / "log.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("Step", "train/loss", "learning_rate", "remark"), *((*row, "x") for row in ROWS)])
    return path


def trainer_state(path: Path) -> Path:
    path = path / "trainer_state.json"
    history: list[dict[str, float]] = [
        {"step": s, "loss": x, "learning_rate": lr, "epoch": s / 20} for s, x, lr in ROWS
    ]
    history.insert(2, {"step": 20, "eval_loss": 3.3, "eval_runtime": 1.0, "epoch": 1.0})
    history.append({"step": 40, "train_runtime": 9.0, "train_loss": 3.1, "epoch": 2.0})
    path.write_text(json.dumps({"max_steps": 40, "log_history": history}, indent=1))
    return path


def markdown(path: Path) -> Path:
    path = path / "notes.md"
    head = "# Run\n\n| Size | Value |\n|---|---|\n| width | 3 |\n\n| Step | **Loss** | LR |\n|:--|--:|---|\n"
    path.write_text(head + "".join(f"| {s:,} | {x} | {lr} |\n" for s, x, lr in ROWS) + "\nThe end.\n")
    return path


def plain(path: Path) -> Path:
    path = path / "notes.txt"
    path.write_text(
        "A run.\n\n step   loss   lr\n ----   ----   --\n" + "".join(f" {s}   {x}   {lr}\n" for s, x, lr in ROWS)
    )
    return path


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def text(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked(length)) + content + struct.pack("<I", masked(content))


def scalar(step: int, tag: str, value: float, *, tensor: bool = False) -> bytes:
    """One event as TensorBoard writes it: wall time, step, summary of one value, a plain float or a tensor of one."""
    held = text(8, b"\x08\x01" + text(5, struct.pack("<f", value))) if tensor else b"\x15" + struct.pack("<f", value)
    return record(
        b"\x09" + struct.pack("<d", 1.5) + b"\x10" + varint(step) + text(5, text(1, text(1, tag.encode()) + held))
    )


def events(path: Path) -> Path:
    path = path / "events.out.tfevents.1.host"
    head = record(b"\x09" + struct.pack("<d", 1.5) + text(3, b"brain.Event:2"))
    body = b"".join(scalar(s, "train/loss", x, tensor=True) + scalar(s, "train/learning_rate", lr) for s, x, lr in ROWS)
    path.write_bytes(head + body)
    return path


FORMATS = [jsonl, comma, trainer_state, markdown, plain, events]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_log(write: Callable[[Path], Path], tmp_path: Path) -> None:
    log, _ = read_log(write(tmp_path))
    assert log.points("loss") == [(s, x) for s, x, _ in ROWS] and not log.unread
    assert [s for s, _ in log.points("lr")] == [10, 20, 30, 40]
    for (_, lr), (_, _, expected) in zip(log.points("lr"), ROWS, strict=True):
        assert lr == pytest.approx(expected, rel=1e-7) and abs(lr - expected) <= log.slack("lr", lr)


def test_a_trainer_state_declares_its_steps_and_its_summary_is_left_out(tmp_path: Path) -> None:
    log, declared = read_log(trainer_state(tmp_path))
    assert declared.total_steps == 40 and log.points("val_loss") == [(20, 3.3)] and len(log.rows) == 4
    assert log.notes == ("1 summary of the whole run is left out",)


def test_the_table_of_the_log_is_found_among_others(tmp_path: Path) -> None:
    log, _ = read_log(markdown(tmp_path))
    assert log.form == "table at line 7" and log.rows[0].place == "line 9"
    assert [row.step for row in log.rows] == [10, 20, 30, 40]


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,lr\n1,3.0,0.1\n2,abc,0.1\n3,2.0\n-4,2.0,0.1\n5,,0.1\n6,nan,0.1\n")
    log, _ = read_log(path)
    assert log.unread == (
        "line 4: 2 cells for 3 columns",
        "line 3: loss = 'abc' is not a number",
        "line 5: step = '-4' is not a step",
    )
    assert len(log.points("loss")) == 2 and len(log.points("lr")) == 4
    lines = tmp_path / "log.jsonl"
    lines.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n[3]\n{"step": 3, "loss": true}\n{"step": 4, "loss": "inf"}\n'
    )
    log, _ = read_log(lines)
    assert log.unread == ('line 2: not JSON: \'{"step": 2, "lo\'', "line 3: not an object of names and numbers")
    assert len(log.rows) == 2


def test_a_table_with_a_torn_row(tmp_path: Path) -> None:
    path = plain(tmp_path)
    path.write_text(path.read_text().replace(" 30   3.0   0.0015\n", " 30   3.0\n"))
    assert read_log(path)[0].unread == ("line 7: 2 cells for the 3 columns of line 3",)


def test_of_two_columns_for_one_quantity_the_other_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,total_loss,loss,speed\n1,4.0,3.0,9\n2,4.0,2.0,9\n")
    log, _ = read_log(path)
    assert log.columns["loss"] == "loss" and log.ignored == ("total_loss (loss is read from loss)", "speed")


def test_damaged_events_are_read_up_to_the_damage(tmp_path: Path) -> None:
    path = events(tmp_path)
    whole = path.read_bytes()
    assert crc32c(b"123456789") == 0xE3069283
    path.write_bytes(whole[:-3])
    log, _ = read_log(path)
    assert len(log.points("loss")) == 4 and len(log.points("lr")) == 3 and "torn or damaged" in log.unread[0]
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert 0 < len(read_log(path)[0].points("loss")) < 4
    huge = struct.pack("<Q", 2**62)
    path.write_bytes(whole + huge + struct.pack("<I", masked(huge)) + b"x")
    assert "a record of 4611686018427387904 bytes is torn" in read_log(path)[0].unread[0]


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b" \n", "is empty"),
    "binary": (b"\x80\x81\xfe", "is not UTF-8 text (line 1)"),
    "prose": (b"The run went well.\nIt is finished.\n", "holds no table of a run"),
    "no columns": (b'{"a": 1}\n{"a": 2}\n', "no learning rate and no loss is recognised"),
    "no numbers": (b"step,loss\n1,x\n2,y\n", "holds a number that is understood"),
    "nested": (b"[" * 100_000, "no learning rate and no loss is recognised"),
    "nested state": (b'{"log_history": 3}', "no learning rate and no loss is recognised"),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_log_cannot_be_judged(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(UnreadableLog, match="required"):
        read_log(path)
    assert main(["audit", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "required" in err and "unexpected" not in err


def test_nothing_decidable_ends_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,bpb\n,\n1,\n")
    assert main(["audit", str(path)]) == 2
    assert main(["audit", str(tmp_path / "absent")]) == 2
    err = capsys.readouterr().err
    assert "holds a number that is understood" in err and "cannot be read: No such file" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--total-steps", "ten"), "--total-steps 'ten'"),
        (("--peak", "nan"), "--peak 'nan'"),
        (("--window", "1"), "at least 2 rows"),
        (("--total-steps", "0"), "total_steps = 0 is not positive"),
        (("--warmup", "50", "--total-steps", "40"), "warmup = 50 is after total_steps = 40"),
        (("--peak", "0.1", "--floor", "0.2"), "floor = 0.2 is above peak = 0.1"),
    ],
)
def test_declarations_that_cannot_be_meant(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(jsonl(tmp_path)), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and "required" in err and "next" in err


def test_declarations_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, log = tmp_path / "spec.toml", jsonl(tmp_path)
    spec.write_text('total_steps = 30\nschedule = "linear"\npeak = 0.002\nrestarts = [30]\n')
    assert main(["audit", str(log), "--spec", str(spec), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["declared"]["total_steps"] == {"value": 30, "where": str(spec)}
    assert main(["audit", str(log), "--spec", str(spec), "--total-steps", "40", "--json"]) == 0
    for bad in ("total_stpes = 30", 'peak = "high"', 'schedule = "step"', "total_steps = ", "total_steps = true"):
        spec.write_text(bad)
        capsys.readouterr()
        assert main(["audit", str(log), "--spec", str(spec)]) == 2
        assert str(spec) in capsys.readouterr().err


SPEC = """
total_steps = 40
classes = 10
restarts = [30]
causal = true
frozen = ["backbone.*"]
suppress = [{ rule = "lr-schedule", reason = "tuned by hand" }]
[schedule]
kind = "linear"
peak = 0.002
warmup = 4
total = 40
"""


def test_a_spec_of_watch_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    found = of_spec(path)
    assert (found.total_steps, found.vocab, found.restarts) == (40, 10, (30,))
    assert (found.schedule, found.peak, found.floor, found.warmup, found.decay_end) == ("linear", 0.002, 0.0, 4, 40)
    assert found.left_out == ("causal", "frozen") and found.suppress[0].rule == "lr-schedule"
    assert read_spec(path).schedule == Schedule(kind="linear", peak=0.002, warmup=4, total=40)


@pytest.mark.parametrize("rule", ["RUN-2", "lr-schedule"])
def test_a_suppressed_violation_is_shown_and_does_not_count(
    rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, log, page = tmp_path / "spec.toml", jsonl(tmp_path), tmp_path / "audit.md"
    declared = 'total_steps = 40\nschedule = "constant"\npeak = 0.5\n'
    spec.write_text(declared)
    assert main(["audit", str(log), "--spec", str(spec), "--json"]) == 1
    spec.write_text(declared + f'suppress = [{{ rule = "{rule}", reason = "tuned by hand" }}]\n')
    capsys.readouterr()
    assert main(["audit", str(log), "--spec", str(spec), "--json", "--out", str(page)]) == 0
    found = {f["slug"]: f for f in json.loads(capsys.readouterr().out)["findings"]}["lr-schedule"]
    assert (found["outcome"], found["reason"]) == ("suppressed", "tuned by hand")
    assert "suppressed: tuned by hand" in page.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("total_stpes = 30", "did you mean 'total_steps'?"),
        ("vocabb = 30", "did you mean 'vocab'?"),
        ("[schedule]\nkind = 'linear'\npeak = 0.1\n", "needs total"),
        ("[schedule]\nkind = 'linear'\npaek = 0.1\ntotal = 3\n", "paek"),
        ("suppress = [{rule = 'lr-decai', reason = 'x'}]", "did you mean lr-decay"),
        ("restarts = 'sometimes'", "restarts"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(text)
    assert main(["audit", str(jsonl(tmp_path)), "--spec", str(spec)]) == 2
    assert said in capsys.readouterr().err


def test_rates_are_judged_by_a_declared_range_and_rises_by_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, log = tmp_path / "spec.toml", jsonl(tmp_path)
    spec.write_text("lr_range = [0.0, 1e-9]\nrestarts = 'any'\n")
    assert main(["audit", str(log), "--spec", str(spec), "--json"]) == 1
    found = {f["slug"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["lr-range"]["outcome"] == "violated" and found["lr-range"]["margin"] < 0
    assert found["lr-decay"]["outcome"] == "not decided" and "any" in found["lr-decay"]["message"]


def test_text_declares_only_what_it_says(tmp_path: Path) -> None:
    said = declared_in_text("run --max-steps=2,000 --lr 3e-4\nWarmup: steps 0-100\nvocab_size = 512, minutes: 9\n")
    assert (said.total_steps, said.peak, said.warmup, said.vocab) == (2000, 3e-4, 100, 512)
    assert said.where["total_steps"] == "line 1" and said.where["warmup"] == "stated, line 2"
    assert not declared_in_text("The total is 2000 and the steps were many; decay was slow.").declared()


@pytest.mark.parametrize(
    ("name", "known"),
    [("Grad Norm", "grad_norm"), ("train/learning_rate", "lr"), ("Loss/val", "val_loss"), ("eval/loss", "val_loss"),
     ("val_bpb", "bpb"), ("Global Step", "step"), ("train_loss", "loss"), ("loss_scale", None), ("speed", None)],
)  # fmt: skip
def test_columns_by_name(name: str, known: str | None) -> None:
    assert canonical(name) == known


def test_numbers_and_their_digits() -> None:
    assert [number(t) for t in ("1,024", "**3.75**", "1e-3", "-.5", "12,34", "3.5k", "0x10", "")] == [
        1024, 3.75, 1e-3, -0.5, None, None, None, None]  # fmt: skip
    fixed, scientific = digits_of(["0.002000", "0.017364"]), digits_of(["1.234e-05", "2e-03"])
    assert fixed.unit(0.002) == fixed.unit(0.017364) == pytest.approx(1e-6)
    assert scientific.unit(2e-3) == pytest.approx(1e-6) and scientific.unit(1.234e-5) == pytest.approx(1e-8)
    log = RunLog("", "", (), {}, {"lr": fixed})
    assert log.last_step is None and log.points("lr") == []
