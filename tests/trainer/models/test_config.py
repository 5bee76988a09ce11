"""The model's shape: what is refused, and that the message names the keys."""

from typing import Any

import pytest
from pydantic import ValidationError

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


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().vocab = 3


def test_feedforward_width_defaults_by_activation() -> None:
    assert ModelConfig(d_model=192, n_heads=3).feedforward_width == 768
    assert ModelConfig(d_model=192, n_heads=3, activation="swiglu").feedforward_width == 512
    assert ModelConfig(d_model=256, activation="swiglu").feedforward_width == 672  # 682.67 to a multiple of 32
    assert ModelConfig(d_ff=100).feedforward_width == 100
