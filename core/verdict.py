"""What a guard says of one observation: HOLDS, VIOLATED or NOT_APPLICABLE, with a signed margin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from karat.core.ops import FLOAT, Number, Ops


class Status(StrEnum):
    HOLDS = "holds"
    VIOLATED = "violated"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Verdict:
    """The judgement of one observation. `margin` is the distance to the nearest bound, negative outside; -inf when
    something observed was not finite."""

    status: Status
    margin: float
    reason: str = ""

    @property
    def violated(self) -> bool:
        return self.status is Status.VIOLATED


def accepts(margin: Number) -> bool:
    """Whether a margin means that the invariant holds: a finite number that is not negative. NaN does not."""
    return bool(0 <= margin < math.inf)


def numbers(value: Any) -> Iterator[Number]:
    """Every number in a nested list or tuple, depth first."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    else:
        yield value


def judge(margin: Any, values: Mapping[str, Any], parameters: Any, ops: Ops = FLOAT) -> Verdict:
    """The verdict of `margin(values, parameters, ops)`; anything observed that is not finite is a violation."""
    for name, value in values.items():
        if not all(math.isfinite(x) for x in numbers(value)):
            return Verdict(Status.VIOLATED, -math.inf, f"{name} is not finite")
    distance = margin(values, parameters, ops)
    if accepts(distance):
        return Verdict(Status.HOLDS, float(distance))
    number = float(distance)
    return Verdict(Status.VIOLATED, number if math.isfinite(number) else -math.inf)
