"""The shape of a model: one frozen record, every key checked, every message naming the key to change."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karat.core.formulas.ternary import GROUP
from karat.core.golden import PHI
from karat.trainer.models.context_features import MOST

LARGEST = 2**31 - 1
"""Of a length, a width or a number of parts; whether a model fits into memory is asked before it is built."""

Activation = Literal["relu2", "swiglu", "gelu"]


class ModelConfig(BaseModel):
    """A decoder-only transformer; the defaults are the byte-level model of `make run`.

    Lengths are in tokens, widths in units. `streams = 1` is the plain residual, without mixing matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab: int = Field(default=256, ge=2, le=LARGEST, description="number of tokens; 256 is raw bytes")
    d_model: int = Field(default=256, ge=2, le=LARGEST, description="width of the residual stream")
    n_layers: int = Field(default=2, ge=1, le=LARGEST, description="blocks, each of one attention and one feed-forward")
    n_heads: int = Field(default=4, ge=1, le=LARGEST, description="attention heads; divides d_model")
    context: int = Field(default=128, ge=1, le=LARGEST, description="longest sequence that the model sees, in tokens")
    d_ff: int | None = Field(
        default=None, ge=1, le=LARGEST, description="width of the feed-forward; none: by activation"
    )
    activation: Activation = Field(default="relu2", description="of the feed-forward")
    norm: Literal["layernorm", "rmsnorm"] = Field(default="layernorm", description="in front of sublayers and head")
    positions: Literal["rope", "learned"] = Field(default="rope", description="rotary angles, or a trained table")
    context_features: int = Field(
        default=0, ge=0, le=MOST, description="tokens before the current one whose features are added to the embedding"
    )
    start: Literal["scaled", "gpt"] = Field(
        default="scaled", description="initial weights: made for the golden rate, or deviation 0.02 as in GPT-2"
    )
    zero_outputs: bool = Field(default=False, description="the last matrix of every sublayer starts at zero")
    qk_norm: bool = Field(default=False, description="queries and keys are divided by their root mean square")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of each sublayer's output, while training")
    qk_gain: float = Field(
        default=float(PHI**2), gt=0, allow_inf_nan=False, description="scores are gain q.k / sqrt(head)"
    )
    rope_theta: float = Field(default=1e4, gt=1, allow_inf_nan=False, description="base of the rotary angles")
    streams: int = Field(default=4, ge=1, le=4, description="mHC residual streams; 1 is the plain residual")
    dynamic_streams: bool = Field(default=False, description="the streams' mixing and gates depend on the token")
    stream_biases: bool = Field(default=False, description="static streams with the seed's redundant biases")
    gf16: bool = Field(default=True, description="feed-forward weights are stored in GF16")
    gf16_activations: bool = Field(default=False, description="the inputs of those weights go through GF16 too")
    ternary: bool = Field(default=False, description="every block's matrices are ternary, their inputs 8-bit integers")
    nca: bool = Field(default=True, description="train with the cellular-automaton objective")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model, got n_heads = {self.n_heads} and d_model = {self.d_model}")
        if self.head_dim % 2:
            raise ValueError(
                "d_model / n_heads must be even, since RoPE turns pairs of coordinates, got "
                f"{self.d_model} / {self.n_heads} = {self.head_dim}"
            )
        if self.ternary and self.gf16:
            raise ValueError(
                "ternary and gf16 are two formats of the same weights: set gf16 = false beside ternary = true"
            )
        if self.ternary and (self.d_model % GROUP or self.feedforward_width % GROUP):
            raise ValueError(
                f"ternary weights share a scale by groups of {GROUP}, which must divide d_model and d_ff, got "
                f"{self.d_model} and {self.feedforward_width}"
            )
        return self

    @model_validator(mode="after")
    def _no_key_is_without_effect(self) -> Self:
        """A key that another one would silence is refused, so that what is configured is what trains."""
        for key in ("dynamic_streams", "stream_biases"):
            if getattr(self, key) and self.streams == 1:
                raise ValueError(
                    f"{key} needs streams = 2, 3 or 4, got streams = 1: the plain residual has nothing to mix; such as "
                    f"model.streams=2, or model.{key}=false"
                )
        if self.dynamic_streams and self.stream_biases:
            raise ValueError(
                "stream_biases needs dynamic_streams = false, got true for both: they are biases of static streams; "
                "model.stream_biases=false, or model.dynamic_streams=false"
            )
        if self.gf16_activations and not self.gf16:
            raise ValueError(
                "gf16_activations needs gf16 = true, got gf16 = false: they are the inputs of the weights in GF16; "
                "model.gf16_activations=false, or model.gf16=true"
            )
        theta = type(self).model_fields["rope_theta"].default  # let pass: a file that a run wrote holds every key
        if self.positions == "learned" and self.rope_theta != theta:
            raise ValueError(
                f"rope_theta needs positions = rope, got positions = learned and rope_theta = {self.rope_theta:g}: a trained "
                f"table has no angles; leave it out (model.rope_theta={theta:g}), or model.positions=rope"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Coordinates of one head."""
        return self.d_model // self.n_heads

    @property
    def feedforward_width(self) -> int:
        """d_ff, or its default: 4 d_model for ReLU² and GELU, 8/3 d_model rounded to a multiple of 32 for SwiGLU.

        All give the feed-forward 8 d_model² weights (SwiGLU has three matrices, the others two).
        """
        if self.d_ff is not None:
            return self.d_ff
        if self.activation != "swiglu":
            return 4 * self.d_model
        return max(32, round(8 * self.d_model / 3 / 32) * 32)
