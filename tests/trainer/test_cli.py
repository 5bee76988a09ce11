"""The command `trainer`: what it prints where, its exit codes, its messages on bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from karat.core.report import digest_holds
from karat.invariants.catalogue import catalogue
from karat.invariants.run.catalogue import RULES
from karat.invariants.runtime.ledger import read_rows
from karat.trainer import cli
from karat.trainer import run as command
from karat.trainer.checkpoint import load_checkpoint, storage
from karat.trainer.cli import main
from karat.trainer.config_file import read_config
from karat.trainer.run import alone

Trainer = Callable[..., int]
Weights = Callable[[str], bytes]


def test_a_strict_run(tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny() == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"BPB=\d+\.\d{4}\n", out)
    assert "byte-trigram baseline" in err and "rung 3:" in err and "every guard held" in err
    run = tmp_path / "run"
    data = json.loads((run / "report.json").read_text())
    assert digest_holds(data) and data["exit_code"] == 0 and f"BPB={data['bpb']:.4f}\n" == out
    assert {g["invariant"]: g["state"] for g in data["guards"]} == dict.fromkeys(
        ("INV-2", "INV-3", "INV-4", "INV-5", "INV-6", "INV-8", "INV-9", "INV-10", "INV-11"), "held"
    )
    assert all(p["grade"] == "PROVED" and not p["stale"] for p in data["proofs"])
    assert data["first_loss"] == pytest.approx(8, abs=0.2)  # log2 256
    assert (run / "run.png").stat().st_size > 10_000
    rows = list(read_rows(run / "log.jsonl"))
    assert [row["step"] for row in rows] == list(range(9))
    assert set(rows[0]) == {"step", "loss", "lr", "gradient_norm", "margins", "nca_loss", "nca_entropy"}
    every_step = {"INV-3", "INV-4", "INV-5", "INV-8", "INV-9", "INV-11"}
    assert set(rows[0]["margins"]) == every_step  # no average was updated yet
    assert set(rows[1]["margins"]) == every_step | {"INV-6"}
    assert read_config(run / "config.toml", []).steps == 9
    assert main(["report", str(run)]) == 0
    assert "# Run report" in capsys.readouterr().out


def test_a_quiet_run_still_says_why_its_exit_code_is_not_zero(
    tiny: Trainer, text: Path, tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["run", "--quiet", "--data", str(text), *(p for s in tiny_settings for p in ("--set", s))]
    assert main([*quiet, "--out", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("BPB=") and err == ""
    assert main([*quiet, "--out", str(tmp_path / "b"), "--strict-invariants", "--set", "optim.lr=0.5"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "INV-8 lr-band violated before the first step" in err and "report.md" in err
    assert main([*quiet, "--out", str(tmp_path / "c"), "--overfit-one-batch"]) == 1
    assert "the batch was NOT learnt by heart" in capsys.readouterr().err


def test_guards_off_changes_no_weight(
    tiny: Trainer, tmp_path: Path, model_bytes: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny(out="on") == 0 and tiny(out="off", policy="off") == 0
    assert model_bytes("on") == model_bytes("off")
    assert "guards off" in capsys.readouterr().err


def test_plain_models_have_fewer_guards_and_say_so(tiny: Trainer, tmp_path: Path) -> None:
    assert tiny("model.streams=1", "model.gf16=false", "model.nca=false", "ema.enabled=false") == 0
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [g["invariant"] for g in data["guards"]] == ["INV-2", "INV-5", "INV-8", "INV-9", "INV-10"]
    left_out = dict(note.split(": not on duty, ") for note in data["notes"] if "not on duty" in note)
    ids = [name.partition(" ")[0] for name in left_out]
    assert ids == ["INV-1", "INV-3", "INV-4", "INV-6", "INV-7", "INV-11", "INV-12", "LIMIT-1"]
    configured = [name for name, why in left_out.items() if why == "this configuration has no such quantity"]
    assert [name.partition(" ")[0] for name in configured] == ["INV-3", "INV-4", "INV-6", "INV-11", "INV-12"]
    assert "trainer audit" in left_out["LIMIT-1 run-limits"]


def test_the_rate_out_of_band_ends_1_and_cites_inv_8(tiny: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("optim.lr=0.5") == 1
    out, err = capsys.readouterr()
    assert out == "" and "INV-8 lr-band violated before the first step" in err and "trainer explain INV-8" in err


def test_warn_reports_the_violation_and_ends_1(
    tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny("optim.lr=0.01", policy="warn") == 1
    out, err = capsys.readouterr()
    assert out.startswith("BPB=") and "violated before the first step" in err
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert data["steps_done"] == 9 and data["outcome"].endswith("violations")


def test_a_breached_gap_voids_the_certificate(
    tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny("asha.target=7.9", "asha.gap=0.01", "asha.threshold=8") == 1
    err = capsys.readouterr().err
    assert "INV-2 asha-threshold violated at step 9 (at the end; strict)" in err and "certificate is VOID" in err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["certificate"].startswith("VOID: at rung 3")
    assert tiny("asha.target=7.9", "asha.gap=2", "asha.threshold=9.9", out="held") == 0
    data = json.loads((tmp_path / "held" / "report.json").read_text())
    assert data["certificate"].startswith("held: observed gap")


def test_print_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--print-config", "--set", "model.d_model=128", "--strict-invariants", "--out", "x"]) == 0
    path = tmp_path / "c.toml"
    path.write_text(capsys.readouterr().out)
    config = read_config(path, [])
    assert config.model.d_model == 128 and config.policy == "strict" and config.out == Path("x")


def arguments(text: Path, *more: str) -> list[str]:
    return ["run", "--data", str(text), *more]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "model.dmodel=256"], "model.d_model"),
        (["--set", "stepz=3"], "steps"),
        (["--set", "steps=-3"], "steps"),
        (["--set", "steps"], "="),
        (["--set", "model.vocab=60"], "vocab"),
        (["--set", "model.n_heads=3", "--set", "model.d_model=32"], "n_heads"),
        (["--set", "optim.lr=nan"], "optim.lr"),
        (["--config", "absent.toml"], "absent.toml"),
    ],
)
def test_bad_settings(
    settings: list[str], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(text, "--out", str(tmp_path / "run"), *settings)) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "next" in err and "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"x", "byte"), (bytes(range(256)) * 40, "text"), (None, "text")],
    ids=["empty", "one-byte", "binary", "folder-without-text"],
)
def test_bad_data(content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert main(["run", "--data", str(path), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_validation_contained_in_training(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = tmp_path / "part.txt"
    part.write_bytes(text.read_bytes()[1000:9000])
    assert main(arguments(text, "--set", f"validation={part}", "--out", str(tmp_path / "run"))) == 2
    assert "stands whole" in capsys.readouterr().err


def test_an_unwritable_folder(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(arguments(text, "--out", str(tmp_path / "file" / "run"))) == 2
    err = capsys.readouterr().err
    assert "cannot write" in err and "Traceback" not in err


def test_a_folder_that_holds_a_run(
    tiny: Trainer, tmp_path: Path, model_bytes: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny() == 0
    before = model_bytes("run")
    assert tiny() == 2
    assert "already holds a run" in capsys.readouterr().err and model_bytes("run") == before


def test_a_full_disk_while_saving(
    tiny: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, calls = storage.write_file, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) > 6:  # the first checkpoint fits, the second does not
            raise OSError(28, "No space left on device")
        honest(path, content)

    monkeypatch.setattr(storage, "write_file", full)
    assert tiny() == 2
    assert "No space left on device" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000003").step == 3


def test_one_process_per_run(tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(tmp_path / "run"):
        assert tiny() == 2
        assert "another process is at work" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # nothing was begun, nothing is left
    assert tiny() == 0


def test_an_altered_report_is_not_shown(tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny() == 0
    path = tmp_path / "run" / "report.json"
    path.write_text(path.read_text().replace('"violations": 0', '"violations": 7'))
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "was altered" in capsys.readouterr().err


def test_runs_begun_together_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    assert [command.next_free(runs).name for _ in range(3)] == ["0001", "0002", "0003"]
    listed = [runs / "0001"]  # as another process saw it before the others were made
    honest = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([listed.pop()]) if listed else honest(path))
    assert command.next_free(runs).name == "0004"
    (tmp_path / "file").write_text("")
    assert command.next_free(tmp_path / "file").name == "0001"  # which cannot be made: `alone` says so


def test_a_folder_lost_during_the_run_is_no_success(
    tiny: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = command.final_loss

    def lose(*arguments: object) -> float:
        (tmp_path / "run" / "log.jsonl").unlink()
        return honest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "final_loss", lose)
    assert tiny() == 2
    out, err = capsys.readouterr()
    assert out == "" and "lost its files" in err


def test_a_final_loss_that_is_not_finite_is_a_divergence(
    tiny: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "final_loss", lambda *arguments: float("nan"))
    assert tiny() == 1
    assert "the final validation loss is nan" in capsys.readouterr().err
    data = json.loads((tmp_path / "run" / "report.json").read_text())
    assert data["outcome"] == "diverged" and data["bpb"] is None


def test_stale_proofs_stop_strict_and_are_reported_by_warn(
    tiny: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("karat.core.formulas.halving.ETA", 4)
    assert tiny() == 2
    assert "UNPROVED" in capsys.readouterr().err
    assert tiny(policy="warn", out="warned") == 0
    data = json.loads((tmp_path / "warned" / "report.json").read_text())
    assert {p["invariant"]: p["grade"] for p in data["proofs"]}["INV-10"] == "UNPROVED"
    assert any("INV-10: UNPROVED" in note for note in data["notes"])


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "inv-8"]) == 0
    page = capsys.readouterr().out
    for part in (
        "phi^-10 / 2",
        "0.0025124994",
        "PROVED",
        "REFUTED",
        "Limits",
        "assumes: phi is the positive root",
        "hypotheses needed: ",
        "hypotheses redundant: ",
        "mutants killed (100%)",
    ):
        assert part in page
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(catalogue()) + len(RULES) and any(line.startswith("RUN-11 ") for line in listed)
    assert main(["explain", "INV-900"]) == 0
    page = capsys.readouterr().out
    assert "the file that new invariants are copied from" in page and "trainer verify --only INV-900" in page
    assert "kept in no lock" in page and "NOT SHOWN" not in page and "UNPROVED" not in page
    assert main(["explain", "INV-88"]) == 2
    assert "did you mean INV-8" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_unless_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert main(["report"]) == 2
    assert "unexpected RuntimeError: broken" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        main(["--debug", "report"])


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has no report" in capsys.readouterr().err
