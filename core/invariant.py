"""The record of an invariant: one definition that the trainer, the provers, the fuzzer and the report all read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from karat.core.obligation import Obligation
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops
from karat.core.verdict import Verdict, judge

Margin = Callable[[Mapping[str, Any], Any, Ops], Number]
"""margin(values, parameters, ops): distance to the nearest bound in the invariant's unit, negative outside."""

MOST_SHOWN = 12
"""Longer lists of numbers are not printed in a message."""


@dataclass(frozen=True)
class Witness:
    """An observation whose side is known, and why it is interesting."""

    values: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Bound:
    """A bound as it is cited: its name, its formula and its decimal value."""

    name: str
    formula: str
    decimal: str


@dataclass(frozen=True)
class Invariant:
    """Everything that defines one invariant. Frozen; compared by identity of its id.

    parameters: the declared constants with their defaults (a frozen dataclass); bounds(parameters) lists them as cited;
    required(parameters) is the condition as one line; strategy(st) draws observations on both sides.
    """

    id: str
    slug: str
    statement: str
    why: str
    unit: str
    sources: tuple[str, ...]
    limits: tuple[str, ...]
    phases: tuple[Phase, ...]
    quantities: tuple[Quantity, ...]
    parameters: Any
    bounds: Callable[[Any], tuple[Bound, ...]]
    required: Callable[[Any], str]
    margin: Margin
    obligations: tuple[Obligation, ...]
    strategy: Callable[[Any], Any]
    holds: tuple[Witness, ...]
    violates: tuple[Witness, ...]
    family: str = field(default="INV")

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{self.family}-[1-9][0-9]*", self.id):
            raise ValueError(f"an id reads {self.family}-<number>, got {self.id!r}")
        for obligation in self.obligations:
            if obligation.invariant != self.id:
                raise ValueError(f"obligation {obligation.id!r} is not named after {self.id}")

    def judge(self, values: Mapping[str, Any], parameters: Any = None, ops: Ops = FLOAT) -> Verdict:
        """The verdict on one observation, with the default parameters unless others are given."""
        missing = [q.name for q in self.quantities if q.name not in values]
        if missing:
            raise KeyError(f"{self.id} observes {', '.join(missing)}, which the probe did not give")
        return judge(self.margin, values, self.parameters if parameters is None else parameters, ops)

    def observed(self, values: Mapping[str, Any]) -> str:
        """The scalar observations, and short lists of them, as one line: `H = 1.4817 nats`."""
        parts = []
        for quantity in self.quantities:
            value = values[quantity.name]
            unit = f" {quantity.unit}" if quantity.unit else ""
            if not isinstance(value, (list, tuple)):
                parts.append(f"{quantity.symbol} = {float(value):.6g}{unit}")
            elif len(quantity.shape) == 1 and len(value) <= MOST_SHOWN:
                shown = ", ".join(f"{float(item):.6g}" for item in value) or "none"
                parts.append(f"{quantity.symbol} = [{shown}]{unit}")
        return ", ".join(parts)
