"""Runs on byte pairs and on synthetic sequences: what the losses are in, what the report names, what resume refuses."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from karat.core.errors import ConfigError
from karat.invariants.runtime.ledger import read_rows
from karat.trainer import console as console_module
from karat.trainer.cli import main
from karat.trainer.config_file import read_config, to_toml
from karat.trainer.console import Console
from karat.trainer.data import encoded
from karat.trainer.data.corpus import load_corpus
from karat.trainer.data.tokenizer import Tokenizer, train_tokenizer

Trainer = Callable[..., int]
BPE = ("tokens=bpe", "model.vocab=320")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "karat" / "tokens"


def report_of(run: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((run / "report.json").read_text())
    return data


def test_a_run_on_byte_pairs_is_in_bits_per_byte_and_resumes_with_its_tokenizer_alone(
    tiny: Trainer,
    text: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tiny(*BPE) == 0
    corpus = load_corpus(str(text), context=32, vocab=320, tokens="bpe")
    assert corpus.tokenizer is not None and corpus.bytes_per_token > 1.5
    report = report_of(tmp_path / "run")
    data = report["data"]
    assert isinstance(data, dict)
    assert data["tokenizer digest"] == corpus.tokenizer.digest
    assert data["manifest digest"] == corpus.manifest.digest
    uniform = math.log2(320) / corpus.bytes_per_token  # of the model at its start, within 0.15 bits per token
    assert report["first_loss"] == pytest.approx(uniform, abs=0.2 / corpus.bytes_per_token)
    rows = list(read_rows(tmp_path / "run" / "log.jsonl"))
    assert rows[0]["loss"] == report["first_loss"]
    bpb = report["bpb"]
    assert isinstance(bpb, float) and bpb == pytest.approx(rows[-1]["loss"], abs=0.5)
    assert report["loss_unit"] == "bits per byte"
    assert "the first token, " in str(report["validation"])

    for path in cache.rglob("*.*"):
        path.unlink()

    def other(text: bytes, vocab: int) -> Tokenizer:
        """As another version of the library might: other merges of the same text."""
        return train_tokenizer(text[: len(text) // 3], vocab)

    monkeypatch.setattr(encoded, "train_tokenizer", other)
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "is not what this run was trained on" in capsys.readouterr().err


def test_a_synthetic_run_reports_its_floor_and_the_loss_of_each_kind(
    tmp_path: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in tiny_settings for part in ("--set", setting)]
    run = tmp_path / "run"
    assert main(["run", "--policy", "strict", "--data", "synthetic", "--out", str(run), *sets]) == 0
    printed = capsys.readouterr()
    floor = math.log(256) / 3 + math.log(3) / 32
    assert f"floor: {floor:.4f} nats per token, {floor / math.log(2):.4f} bits" in printed.err
    assert "byte-trigram" not in printed.err
    report = report_of(run)
    data = report["data"]
    assert isinstance(data, dict) and report["baseline_bpb"] is None and report["loss_unit"] == "bits per token"
    assert str(data["floor, nats per token"]).startswith(f"{floor:.4f} (")
    kinds = dict(part.split() for part in str(data["validation loss by kind of sequence, nats per token"]).split(", "))
    assert list(kinds) == ["constant", "counting", "random"]
    bpb = report["bpb"]
    assert isinstance(bpb, float)
    assert sum(map(float, kinds.values())) / 3 / math.log(2) == pytest.approx(bpb, abs=1e-3)
    assert data["manifest digest"] == load_corpus("synthetic", context=32).manifest.digest  # no steps in it
    assert f"**{bpb:.4f}** bits per token" in (run / "report.md").read_text()
    assert main(["gate", *[str(run)] * 3]) == 2
    assert "cannot be held to a target: its losses are in bits per token" in capsys.readouterr().err


@pytest.mark.parametrize("vocab", [2, 256, 65_537])
def test_a_vocabulary_that_no_tokenizer_has_is_a_bad_setting(vocab: int) -> None:
    with pytest.raises(ConfigError, match=f"model.vocab must be 257 to 65536 with tokens=bpe, got {vocab}"):
        read_config(None, ["tokens=bpe", f"model.vocab={vocab}"])


def test_the_kind_of_tokens_is_a_setting_of_the_trajectory(tmp_path: Path) -> None:
    config = read_config(None, list(BPE))
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "run.toml", []) == config
    assert config.trajectory["tokens"] == "bpe" != read_config(None, ["model.vocab=320"]).trajectory["tokens"]
    with pytest.raises(ConfigError, match="tokens: "):
        read_config(None, ["tokens=words"])


def test_what_takes_long_is_said_and_what_does_not_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    with console.working("nothing to wait for"):
        pass
    monkeypatch.setattr(console_module, "LONG", 0.01)
    with console.working("counting sheep"):
        time.sleep(0.2)
    with pytest.raises(ValueError, match="awake"), console.working("sleeping"):
        raise ValueError("awake")
    assert capsys.readouterr().err == "counting sheep …\n"
