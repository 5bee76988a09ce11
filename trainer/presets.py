"""Named configurations of the one model family: what each lays under the settings that are given.

`trainer run --preset ternary-tiny`, or `preset = "ternary-tiny"` in a file; every key can still be set. Sources: the
project's seeds (facts in docs/training.md), whose numbers each preset keeps where they are sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karat.core.errors import ConfigError

Table = dict[str, Any]

_PLAIN: Table = {"streams": 1, "gf16": False, "nca": False, "qk_gain": 1.0, "start": "gpt"}
"""A transformer without this project's own parts: no streams, no GF16, no automaton, no golden gain."""


def _rung(d_model: int, n_layers: int, n_heads: int, vocab: int) -> Table:
    """One rung of the ladder for CPUs: learned positions, LayerNorm, GELU, AdamW at 0.001, 8 rows of 128 tokens."""
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "vocab": vocab, "context": 128}
    return {
        "tokens": "bpe",
        "batch_size": 8,
        "model": _PLAIN | shape | {"d_ff": 4 * d_model, "activation": "gelu", "positions": "learned"},
        "optim": {"lr": 0.001, "weight_decay": 0.0001, "beta2": 0.999},
        "qk": {"power": 0},
        "lr_band": {"n": "nearest"},
        "ema": {"enabled": False},
    }


PRESETS: Mapping[str, tuple[str, Table]] = {
    "ternary-tiny": (
        "3,672,392 parameters, ternary matrices and 8-bit activations, two residual streams, Muon and Lion",
        {
            "tokens": "bpe",
            "batch_size": 8,
            "model": _PLAIN
            | {
                "d_model": 256, "n_layers": 4, "n_heads": 4, "vocab": 4096, "context": 256,
                "d_ff": 512, "activation": "swiglu", "norm": "rmsnorm",
                "streams": 2, "stream_biases": True, "ternary": True,
            },
            "optim": {
                "name": "muon+lion", "lr": 0.0005, "matrix_lr": 0.02, "ns_steps": 3, "ns_dtype": "bfloat16", "weight_decay": 0.0,
                "beta1": 0.9, "beta2": 0.99, "decay_start": 0.8,
            },
            "qk": {"power": 0},
            "lr_band": {"n": "nearest"},
            "ema": {"enabled": False},
        },
    ),
    "nano": ("0.67M parameters: 2 layers of 128, vocabulary 2048", _rung(128, 2, 4, 2048)),
    "micro": ("4.2M parameters: 4 layers of 256, vocabulary 4096", _rung(256, 4, 4, 4096)),
    "mini": ("13.8M parameters: 6 layers of 384, vocabulary 8192", _rung(384, 6, 6, 8192)),
    "gf16": ("the default model without its automaton: feed-forward weights in GF16", {"model": {"nca": False}}),
    "nca": ("the default model: GF16 weights, four residual streams, the automaton's objective", {}),
    "hybrid": (
        "features of the last 6 bytes and two layers of attention over the sequence: RoPE, ReLU², golden gain",
        {
            "model": {
                "context_features": 6, "n_layers": 2, "d_model": 256, "streams": 1, "gf16": False, "nca": False,
            },
        },
    ),
    "tjepa": (
        "the transformer with T-JEPA beside the next-token loss: 30 % masked in spans, a target that follows it",
        {
            "model": {"streams": 1, "gf16": False, "nca": False},
            "jepa": {"enabled": True},
            "ema": {"enabled": False},
        },
    ),
    "shakespeare": (
        "3.2M parameters on bytes: QK-norm with the golden gain, ReLU², Muon and AdamW, bfloat16",
        {
            "data": "tiny_shakespeare",
            "batch_size": 24,
            "precision": "bfloat16",
            "model": _PLAIN
            | {
                "d_model": 256, "n_layers": 4, "n_heads": 4, "context": 256, "qk_norm": True,
                "qk_gain": 2.618033988749895, "zero_outputs": True, "dropout": 0.05, "norm": "rmsnorm",
            },
            "optim": {
                "name": "muon", "lr": 0.003, "matrix_lr": 0.02, "ns_dtype": "bfloat16", "weight_decay": 0.0,
                "decay_start": 0.5, "floor": 0.0,
            },
        },
    ),
}  # fmt: skip
"""Name -> (what it is, its settings)."""


def preset(name: object) -> Table:
    """The settings of a preset; ConfigError for a name that is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}", required=f"one of {', '.join(PRESETS)}", next_step="trainer presets"
        )
    return PRESETS[name][1]
