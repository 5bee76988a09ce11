"""meta.json: what a person wants to know of a checkpoint without loading it. Read by nothing, hashed like the rest.

A loss is the one that was measured last, with the step it is of; never a running mean, which a log line may have reset.
What is not known is null, never 0.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BITS = "bits per byte"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Measured(_Record):
    """A loss, its unit, and the step that it is of. No number but a name where it is not finite."""

    value: float | Literal["nan", "inf", "-inf"]
    unit: str
    step: int = Field(ge=0)


class Meta(_Record):
    """What a checkpoint is of.

    step: optimizer steps done. training_loss: of the last step taken, by its number (from 0, as in log.jsonl).
    validation_loss: of the last evaluation, after so many steps. learning_rates: in force, by parameter group.
    seconds: of the run so far, resumed parts included. parameters: trainable numbers.
    """

    step: int = Field(ge=0)
    training_loss: Measured | None = None
    validation_loss: Measured | None = None
    learning_rates: dict[str, float] = Field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    config_digest: str | None = None
    data_digest: str | None = None


def measured(value: float | None, step: int, unit: str = BITS) -> Measured | None:
    """A loss as it was measured; None when none was."""
    if value is None or step < 0:
        return None
    return Measured(value=float(value) if math.isfinite(value) else _name(value), unit=unit, step=step)


def meta_bytes(meta: Meta) -> bytes:
    """Its text: indented JSON, keys in the order above."""
    return (json.dumps(meta.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def _name(value: float) -> Literal["nan", "inf", "-inf"]:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"
