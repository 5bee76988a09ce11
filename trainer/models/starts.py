"""How a model starts: the standard deviations of its matrices and the gains of its norms, by `ModelConfig.start`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from karat.trainer.models.config import ModelConfig

SUBLAYER_GAIN = 0.25
"""The start "scaled": the gain in front of a sublayer. Adam moves every weight by about lr per step, whatever the
gradient; a small gain behind proportionally larger weights makes that a small change of the function, so that the
project's rate of 0.004 suits a width of 256 (200 steps, byte-level: 2.53 bits per byte against 3.05 with gain 1)."""
INPUT_STD = 0.4 / SUBLAYER_GAIN
"""The start "scaled": standard deviation, times sqrt(d_model), of the weights that read a sublayer's norm."""
SCALED_EMBEDDING_STD = 0.1
GPT_STD = 0.02
"""The start "gpt": every matrix, and the embedding; all gains are 1. Radford et al. 2019, GPT-2."""


@dataclass(frozen=True)
class Start:
    """Standard deviations of the matrices and gains of the norms before the first step.

    The last matrix of a sublayer is narrower by sqrt(2 n_layers), so that the residual stream starts with the same size
    at any depth; or zero. In both starts the logits start small (0.1 and 0.32 at d_model 256), so that the first loss is
    that of guessing and the tied head cannot start by predicting its own input.
    """

    embedding: float
    inputs: float
    attention_output: float
    feedforward_output: float
    sublayer_gain: float
    final_gain: float


def start_of(config: ModelConfig) -> Start:
    """The start that a configuration asks for."""
    d, width, depth = config.d_model, config.feedforward_width, math.sqrt(2 * config.n_layers)
    nothing = 0.0 if config.zero_outputs else 1.0
    if config.start == "gpt":
        output = nothing * GPT_STD / depth
        return Start(GPT_STD, GPT_STD, output, output, 1.0, 1.0)
    return Start(
        embedding=SCALED_EMBEDDING_STD,
        inputs=INPUT_STD / math.sqrt(d),
        attention_output=nothing / math.sqrt(d) / depth,
        feedforward_output=nothing / depth / math.sqrt(width),
        sublayer_gain=SUBLAYER_GAIN,
        final_gain=1 / math.sqrt(d),
    )
