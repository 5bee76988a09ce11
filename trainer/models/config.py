"""The shape of a model: one frozen record, every key checked, every message naming the key to change."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karat.core.golden import PHI

Activation = Literal["relu2", "swiglu"]


class ModelConfig(BaseModel):
    """A decoder-only transformer; the defaults are the byte-level model of `make run`.

    Lengths are in tokens, widths in units. `streams = 1` is the plain residual, without mixing matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab: int = Field(default=256, ge=2, description="number of tokens; 256 is raw bytes")
    d_model: int = Field(default=256, ge=2, description="width of the residual stream")
    n_layers: int = Field(default=2, ge=1, description="blocks, each of one attention and one feed-forward")
    n_heads: int = Field(default=4, ge=1, description="attention heads; divides d_model")
    context: int = Field(default=128, ge=1, description="longest sequence that the model sees, in tokens")
    d_ff: int | None = Field(default=None, ge=1, description="width of the feed-forward; none: by activation")
    activation: Activation = Field(default="relu2", description="of the feed-forward")
    qk_gain: float = Field(
        default=float(PHI**2), gt=0, allow_inf_nan=False, description="scores are gain q.k / sqrt(head)"
    )
    rope_theta: float = Field(default=1e4, gt=1, allow_inf_nan=False, description="base of the rotary angles")
    streams: int = Field(default=4, ge=1, le=4, description="mHC residual streams; 1 is the plain residual")
    gf16: bool = Field(default=True, description="feed-forward weights are stored in GF16")
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
        return self

    @property
    def head_dim(self) -> int:
        """Coordinates of one head."""
        return self.d_model // self.n_heads

    @property
    def feedforward_width(self) -> int:
        """d_ff, or its default: 4 d_model for ReLU², 8/3 d_model rounded to a multiple of 32 for SwiGLU.

        Both give the feed-forward 8 d_model² weights (SwiGLU has three matrices, ReLU² two).
        """
        if self.d_ff is not None:
            return self.d_ff
        if self.activation == "relu2":
            return 4 * self.d_model
        return max(32, round(8 * self.d_model / 3 / 32) * 32)
