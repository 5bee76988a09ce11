"""Presets are laid under what is set, read back equal, and are the shapes that they say."""

from pathlib import Path

import pytest
import torch

from karat.core.errors import ConfigError
from karat.trainer.cli import main
from karat.trainer.config_file import read_config, to_toml
from karat.trainer.models.transformer import Transformer
from karat.trainer.presets import PRESETS

COUNTS = {"ternary-tiny": 3_672_392, "nano": 672_384, "micro": 4_229_376, "mini": 13_816_704}
"""ternary-tiny: 4096·256 + 4 (4·256² + 3·256·512 + 2·256 + 2·9) + 256; the ladder: V·d + T·d + L (12 d² + 2 d) + d."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration_that_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = read_config(None, [], preset=name)
    assert config.preset == name
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "run.toml", []) == config


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_the_stated_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Transformer(read_config(None, [], preset=name).model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_what_is_set_is_laid_over_the_preset(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("preset = 'nano'\n[model]\nn_layers = 3\n[optim]\nlr = 0.002\n")
    config = read_config(tmp_path / "run.toml", ["model.d_ff=64"], seed=5)
    assert (config.model.n_layers, config.model.d_ff, config.model.d_model, config.seed) == (3, 64, 128, 5)
    assert (config.optim.lr, config.optim.weight_decay, config.lr_band.n) == (0.002, 0.0001, 11)
    assert read_config(tmp_path / "run.toml", [], preset="mini").model.d_model == 384


def test_a_name_that_is_none_is_refused_and_a_wrong_key_names_the_preset() -> None:
    with pytest.raises(ConfigError, match="there is no preset 'nanno'"):
        read_config(None, [], preset="nanno")
    with pytest.raises(ConfigError, match="there is no preset 3"):
        read_config(None, ["preset=3"])
    with pytest.raises(ConfigError, match="ternary and gf16 are two formats"):
        read_config(None, ["model.gf16=true"], preset="ternary-tiny")


def test_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRESETS)
