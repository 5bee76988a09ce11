"""The model's shape: what is refused, and that the message names the keys."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from karat.core.errors import ConfigError
from karat.trainer.config_file import read_config, to_toml
from karat.trainer.models.config import ModelConfig


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"d_model": 100, "n_heads": 3}, ["n_heads", "d_model", "100", "3"]),
        ({"d_model": 6, "n_heads": 2}, ["d_model", "n_heads", "even", "RoPE"]),
        ({"vocab": 1}, ["vocab"]),
        ({"streams": 5}, ["streams"]),
        ({"qk_gain": 0.0}, ["qk_gain"]),
        ({"qk_gain": float("inf")}, ["qk_gain"]),
        ({"activation": "tanh"}, ["activation"]),
        ({"layers": 3}, ["layers"]),
    ],
)
def test_a_wrong_shape_is_refused_by_name(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        ModelConfig(**settings)
    assert all(name in str(refused.value) for name in named)


SILENCED = [
    (
        {"stream_biases": True, "streams": 1},
        ["stream_biases needs streams = 2, 3 or 4", "got streams = 1", "model.streams=2", "model.stream_biases=false"],
    ),
    (
        {"dynamic_streams": True, "streams": 1},
        ["dynamic_streams needs streams = 2, 3 or 4", "got streams = 1", "model.dynamic_streams=false"],
    ),
    (
        {"dynamic_streams": True, "stream_biases": True},
        ["stream_biases needs dynamic_streams = false", "got true for both", "model.stream_biases=false"],
    ),
    (
        {"gf16_activations": True, "gf16": False},
        ["gf16_activations needs gf16 = true", "got gf16 = false", "model.gf16_activations=false"],
    ),
    (
        {"rope_theta": 500.0, "positions": "learned"},
        ["rope_theta needs positions = rope", "got positions = learned and rope_theta = 500", "model.positions=rope"],
    ),
]


@pytest.mark.parametrize(("settings", "said"), SILENCED)
def test_a_key_that_would_have_no_effect_is_refused_with_what_to_type(
    settings: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(None, [], **{f"model.{key}": value for key, value in settings.items()})
    assert refused.value.exit_code == 2 and refused.value.seen.startswith("model: ")
    assert all(part in refused.value.seen for part in said), refused.value.seen
    for key in settings:  # each of the two alone is a configuration
        ModelConfig(**{key: settings[key]})


def test_what_a_run_with_learned_positions_wrote_is_read_again(tmp_path: Path) -> None:
    config = read_config(None, ["model.positions=learned"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert "rope_theta" in (tmp_path / "config.toml").read_text()
    assert read_config(tmp_path / "config.toml", []) == config


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().vocab = 3


def test_feedforward_width_defaults_by_activation() -> None:
    assert ModelConfig(d_model=192, n_heads=3).feedforward_width == 768
    assert ModelConfig(d_model=192, n_heads=3, activation="swiglu").feedforward_width == 512
    assert ModelConfig(d_model=256, activation="swiglu").feedforward_width == 672  # 682.67 to a multiple of 32
    assert ModelConfig(d_ff=100).feedforward_width == 100
