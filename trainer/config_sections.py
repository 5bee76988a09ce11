"""The sections of a run's configuration: frozen records, each key with its range, each message naming the key to change."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from karat.core.policy import Policy
from karat.invariants import inv04_nca_entropy_band, inv06_ema_decay, inv09_qk_gain
from karat.invariants.inv02_asha_threshold import as_written

LARGEST_Z = 100.0
"""Standard errors. By Chebyshev's inequality noise of any law exceeds these at most once in 10^4."""

LARGEST_ANCHOR = 64
"""The n of the smallest golden anchor: phi^-64 > 4e-14."""

LARGEST_TOLERANCE = 8.0
"""Bits per byte: the loss of guessing bytes evenly. A rise by more is what INV-1 is there to see."""


def as_text(value: Any) -> Any:
    """Text that a file system and a UTF-8 file can hold; ValueError for any other value."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    if not value or "\0" in value:
        raise ValueError("must be text without NUL, not empty")
    return value


def as_path(value: Any) -> Any:
    """A path as the user gave it, from text or a Path."""
    return Path(as_text(str(value) if isinstance(value, Path) else value))


def as_policy(value: Any) -> Any:
    """A policy from its name; ValueError lists the four names."""
    if value not in list(Policy):
        raise ValueError(f"must be one of {', '.join(Policy)}")
    return Policy(value)


def as_number(value: Any) -> Any:
    """ValueError for NaN, an infinity, or an integer beyond float64; anything else is pydantic's to judge."""
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        raise ValueError("must be a finite number")
    return value


def as_anchor(value: Any) -> Any:
    """The n of a golden anchor, or "nearest"; ValueError for any other value."""
    if value != "nearest" and (type(value) is not int or not 0 <= value <= LARGEST_ANCHOR):
        raise ValueError(f'must be an integer from 0 to {LARGEST_ANCHOR}, or "nearest"')
    return value


GivenPath = Annotated[Path, BeforeValidator(as_path)]
Finite = Annotated[float, BeforeValidator(as_number), Field(allow_inf_nan=False)]
Loss = Annotated[Finite, Field(ge=0)]


class Section(BaseModel):
    """Frozen and strict: a string is not a number, `true` is not 1, and no key is ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OptimConfig(Section):
    """The optimizer and its schedule; `lr` is the peak, `floor` a fraction of it, `decay_start` a fraction of the steps."""

    name: Literal["adamw", "lion", "muon", "muon+lion"] = "adamw"
    """"muon" and "muon+lion": Muon moves the matrices of the blocks, AdamW or Lion everything else."""
    lr: Finite = Field(default=0.004, gt=0)
    matrix_lr: Finite = Field(default=0.02, gt=0)
    """Muon's peak; it follows the same schedule."""
    ns_steps: int = Field(default=5, ge=1, le=10)
    """Iterations of Newton-Schulz in Muon."""
    ns_dtype: Literal["float32", "bfloat16"] = "float32"
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: int | None = Field(default=None, ge=0)
    """Steps; resolved to max(1, steps // 20)."""
    decay_start: Finite = Field(default=0.6, gt=0, le=1)
    floor: Finite = Field(default=0.1, ge=0, le=1)
    weight_decay: Finite = Field(default=0.1, ge=0)
    beta1: Finite = Field(default=0.9, ge=0, lt=1)
    beta2: Finite = Field(default=0.95, ge=0, lt=1)
    clip: Finite = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""


class EmaConfig(Section):
    """The moving average of the weights: its decay rises along a cosine from start to end over the steps."""

    enabled: bool = True
    start: Finite = Field(default=0.996, ge=0, lt=1)
    end: Finite = Field(default=1.0, gt=0, le=1)
    hull_every: int = Field(default=50, ge=1)
    """Updates between two comparisons of every average with its hull."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.start < self.end:
            raise ValueError(f"start must be below end, got start = {self.start} and end = {self.end}")
        low, high = self.declared.ends
        if not low < high:
            raise ValueError(
                "two float64 numbers must lie between start and end, so that the decay can rise, got "
                f"start = {self.start} and end = {self.end}; further apart, such as ema.start=0.996 and ema.end=1.0"
            )
        return self

    @property
    def declared(self) -> inv06_ema_decay.Averaging:
        """The declared decay as exact decimals, for INV-6."""
        return inv06_ema_decay.Averaging(as_written(self.start), as_written(self.end), self.hull_every)


class AshaConfig(Section):
    """The declared prune threshold, target and gap, in bits per byte; INV-2 judges them, not this record."""

    threshold: Loss = 3.5
    target: Loss = 1.5
    gap: Loss = 2.0
    r0: int | None = Field(default=None, ge=1)
    """The first rung, in steps; resolved to a third of the steps, rounded up."""


class DescentConfig(Section):
    """The windows of step losses that INV-1 compares: how long, and how much of a rise is noise."""

    window: int | None = Field(default=None, ge=2)
    """Steps in each of the two windows; resolved to max(20, steps // 20)."""
    z: Finite = Field(default=6.0, gt=0, le=LARGEST_Z)
    """Standard errors."""
    tolerance: Finite = Field(default=0.05, ge=0, le=LARGEST_TOLERANCE)
    """Bits per byte."""


class LrBandConfig(Section):
    """The golden band of INV-8: anchor phi^-n / 2, from anchor/phi^k to anchor·phi^k; n up to LARGEST_ANCHOR.

    n = "nearest" is resolved to that of the anchor nearest to `optim.lr`. Muon's rate has the band of its own nearest.
    """

    n: Annotated[int | Literal["nearest"], BeforeValidator(as_anchor)] = 10
    k: int = Field(default=1, ge=1, le=64)


class QkConfig(Section):
    """The declared gain of the attention scores, phi^power; INV-9 holds `model.qk_gain` and the scores to it."""

    power: int = Field(default=2, ge=-inv09_qk_gain.POWERS, le=inv09_qk_gain.POWERS)


class EntropyBandConfig(Section):
    """The band of INV-4 in nats, meant as the decimals that were written."""

    low: Finite = Field(default=1.5, ge=0, lt=math.log(inv04_nca_entropy_band.STATES))
    high: Finite = Field(default=2.8, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low = {self.low} and high = {self.high}")
        return self


class EvalConfig(Section):
    """When the validation loss is taken, and on how many of its bytes."""

    every: int | None = Field(default=None, ge=1)
    """Steps; none: at the rungs and at the end alone."""
    bytes: int | None = Field(default=None, ge=2)
    """None: the whole split."""


class CheckpointConfig(Section):
    """How often the state is written, and how many are kept besides `best`, `final` and `violation`."""

    every: int | None = Field(default=None, ge=1)
    """Steps; resolved to max(1, steps // 4)."""
    keep_last: int = Field(default=2, ge=1)
    keep_best: bool = True
    """Whether the state with the lowest validation loss so far is kept as `best`."""
    background: bool = True
    """Whether a copy of the state is written while training goes on; it takes as much memory as a checkpoint has bytes."""
