"""What a guard may look at: named quantities with unit, shape and meaning; and the moments at which it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """When a guard looks. Every phase comes before the change that it may stop."""

    START = "before the first step"
    BEFORE_STEP = "before the step"
    RUNG = "at a rung"
    FINISH = "at the end"


@dataclass(frozen=True)
class Quantity:
    """One observed quantity. shape is () for a number, ("S", "n", "n") for S matrices, and so on."""

    name: str
    symbol: str
    unit: str
    meaning: str
    shape: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observation:
    """The values of one invariant's quantities at one moment, and which probe read them."""

    invariant_id: str
    values: Mapping[str, Any]
    probe: str
