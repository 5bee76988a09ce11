"""`trainer preflight`: exit codes 0, 1 and 2, and that it writes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from karat.trainer import preflight as command
from karat.trainer.cli import main
from karat.trainer.models import attention


def given(text: Path, settings: tuple[str, ...]) -> list[str]:
    return ["preflight", "--data", str(text), *(part for setting in settings for part in ("--set", setting))]


def test_a_sound_configuration(
    text: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(given(text, tiny_settings)) == 0
    out = capsys.readouterr().out
    assert out.startswith("preflight: 0 FAIL, 0 WARN") and "held     RUN-23" in out
    assert not os.listdir(tmp_path)
    assert main([*given(text, tiny_settings), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "karat preflight report" and not data["findings"] and "RUN-10" in data["held"]


def test_a_model_that_sees_the_future_ends_with_1(
    text: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = attention.F.scaled_dot_product_attention

    def leaking(*args: Tensor, is_causal: bool, scale: float) -> Tensor:
        return attend(*args, is_causal=False, scale=scale)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", leaking)
    assert main(given(text, tiny_settings)) == 1
    out = capsys.readouterr().out
    assert "FAIL RUN-23 causality" in out and "first in model.sublayers.0" in out


def test_a_term_that_is_cut_ends_with_1(
    text: Path, tiny_settings: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = command.terms
    monkeypatch.setattr(command, "terms", lambda m, b: {**terms(m, b), "nca": torch.ones(())})
    assert main(given(text, tiny_settings)) == 1
    assert "the term 'nca' is connected to no parameter" in capsys.readouterr().out


def test_what_cannot_be_judged_ends_with_2(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--data", str(tmp_path / "absent")]) == 2
    assert main(["preflight", "--config", str(tmp_path / "absent.toml")]) == 2
    assert "absent.toml" in capsys.readouterr().err
