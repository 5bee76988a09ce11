"""Which mistake turns the declared schedule into the rates that were used: one cause in words, or none.

Pure functions of the declared schedule and the rates seen, the last of which is the one that differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

AGREE = 1e-6
"""Relative tolerance: float32 holds 7 digits."""
FASTEST = 128
"""Factors between the declared and the used speed that are tried."""
Points = Sequence[tuple[int, float]]
Declared = Callable[[int], float]


def agree(rate: float, expected: float, scale: float = 0.0) -> bool:
    """Whether two rates are equal within AGREE; scale: of the schedule, for rates near zero."""
    return abs(rate - expected) <= AGREE * abs(expected) + 1e-9 * scale


def cause(declared: Declared, points: Points, batches: int = 1, end: int | None = None) -> str:
    """The mistake that explains all points, the simplest first; empty when none of the known ones does.

    points: (update, rate) in order; batches: forwards of the last update; end: where the schedule is declared to end.
    """
    step, rate = points[-1]
    value = safely(declared, step)
    scale = max(abs(r) for _, r in points)
    if end is not None and step >= end and rate > value and _fits(declared, points[:-1], lambda s: s, scale):
        return f"the schedule ended at step {end} and the rate goes on: it is not clamped at its end"
    for shift, words in ((1, "one step early"), (-1, "one step late")):
        if len(points) > 1 and _stuck(points):
            break
        if _fits(declared, points, _moved(shift), scale):
            return f"it is the declared rate of step {max(step + shift, 0)}: {words}, steps are counted from another number"
    if _stuck(points):
        return f"it has not moved since step {points[0][0]}: the schedule is not applied"
    return (
        _fast(declared, points, batches, scale)
        or _slow(declared, points, scale)
        or _share(declared, points, batches)
        or _beyond(value, rate, step, end)
    )


def _fast(declared: Declared, points: Points, batches: int, scale: float) -> str:
    fits = [
        times for times in range(2, FASTEST + 1)
        if any(_fits(declared, points, _times(times, first), scale) for first in (0, times - 1))
    ]  # fmt: skip
    if not fits:
        return ""
    if batches in fits:
        return (
            f"the schedule runs {batches} times too fast: it is stepped for each of the {batches} batches of an update"
        )
    return f"the schedule runs {_span(fits)} times too fast: it is stepped that often for each update"


def _slow(declared: Declared, points: Points, scale: float) -> str:
    last = min(points[-1][0], FASTEST)
    fits = [times for times in range(2, last + 1) if _fits(declared, points, _parts(times), scale)]
    if not fits:
        return ""
    return f"the schedule runs {_span(fits)} times too slow: it is stepped once for so many updates"


def _span(fits: Sequence[int]) -> str:
    return f"{fits[0]}" if len(fits) == 1 else f"{fits[0]} to {fits[-1]}"


def _share(declared: Declared, points: Points, batches: int) -> str:
    shares = [r / v for s, r in points if (v := safely(declared, s)) and math.isfinite(v)]
    if not shares or any(not agree(share, shares[0]) for share in shares) or not shares[0] > 0:
        return ""
    parts = 1 / shares[0]
    if batches > 1 and agree(parts, batches):
        return (
            f"it is 1/{batches} of it, and an update takes {batches} batches: "
            "the schedule was planned in batches, or the rate divided by them"
        )
    return f"it is {shares[0]:.4g} times it at every step so far"


def _beyond(value: float, rate: float, step: int, end: int | None) -> str:
    if end is not None and step >= end:
        return "the decay goes on past its end, below its floor" if rate < value else "the rate rises past its end"
    return ""


def _stuck(points: Points) -> bool:
    return len(points) > 1 and points[-1][0] > points[0][0] and all(r == points[0][1] for _, r in points)


def _times(times: int, first: int) -> Callable[[int], int]:
    return lambda step: step * times + first


def _parts(times: int) -> Callable[[int], int]:
    return lambda step: step // times


def _moved(shift: int) -> Callable[[int], int]:
    return lambda step: max(step + shift, 0)


def _fits(declared: Declared, points: Points, place: Callable[[int], int], scale: float) -> bool:
    return bool(points) and all(agree(rate, safely(declared, place(step)), scale) for step, rate in points)


def safely(declared: Declared, step: int) -> float:
    """The declared rate; NaN where the function has none."""
    try:
        return float(declared(step))
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return math.nan
