"""Shapes worth trying on logged learning rates: warm-ups that the first rows allow, decays from a grid, ends by least squares.

Nothing here judges: `reconstruct.py` does, by the running formulas. The grid works on shares of the peak, in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from karat.invariants.run.shapes import Shape

LENGTHS, STARTS = 240, 40
"""Lengths of a decay, on a geometric grid whose neighbours differ by 2 to 5 percent; starts of it."""


@dataclass(frozen=True)
class Entry:
    """A logged rate: its step, how far it may be from what it was rounded from, and the place value of its last digit."""

    step: float
    lr: float
    slack: float
    unit: float


def thinned(entries: Sequence[Entry], count: int) -> list[Entry]:
    """At most `count` rows, evenly spaced, the first and the last among them."""
    if len(entries) <= count:
        return list(entries)
    return [entries[k * (len(entries) - 1) // (count - 1)] for k in range(count)]


def warm(entries: Sequence[Entry], base: Shape) -> Iterator[Shape]:
    """Shapes with a straight warm-up from zero that the rows before the largest rate allow, with their peak."""
    largest = max(entry.lr for entry in entries)
    top = next(k for k, entry in enumerate(entries) if entry.lr >= largest - entry.slack)
    rising = [entry for entry in entries[:top] if entry.lr > 0]
    if not rising:
        first = int(entries[top].step) + base.shift
        for warmup in sorted({0, first} if base.from_zero else {first + 1}):  # no row of the warm-up was logged
            if warmup >= 0:
                yield _warmed(base, warmup, largest)
        return
    offset = base.shift + (not base.from_zero)
    if any(entry.step + offset <= 0 for entry in rising):
        return
    slopes = [(e.lr - e.slack, e.lr + e.slack, e.step + offset) for e in rising]
    low, high = max(a / at for a, _, at in slopes), min(b / at for _, b, at in slopes)
    if not 0 < low <= high * (1 + 1e-12):
        return  # these rows are on no line through zero
    last, fall = int(rising[-1].step + offset), int(entries[min(top + 1, len(entries) - 1)].step + offset)
    exact = {math.ceil(largest / high - 1e-6), math.floor(largest / low + 1e-6), round(2 * largest / (low + high))}
    for warmup in sorted(n for n in exact if n >= 1):
        yield _warmed(base, warmup, largest)
    for warmup in sample(max(1, last), max(last, fall), 12):  # a peak between two rows was never logged
        peak = float(f"{warmup * (low + high) / 2:.4g}")
        if peak >= largest and not (warmup in exact and peak == largest):
            yield _warmed(base, warmup, peak)


def _warmed(base: Shape, warmup: int, peak: float) -> Shape:
    return replace(base, warmup=warmup, stable_end=warmup, total=warmup, peak=peak)


def sample(first: int, last: int, count: int) -> list[int]:
    """About `count` whole numbers from first to last, both ends and the roundest among them."""
    if last - first <= count:
        return list(range(first, last + 1))
    even = {first + (last - first) * k // (count - 1) for k in range(count)}
    tens = 10 ** max(0, len(str(last - first)) - 1)
    return sorted(even | set(range(-(-first // tens) * tens, last + 1, tens)))


@np.errstate(over="ignore", invalid="ignore")
def decays(entries: Sequence[Entry], held: Shape, wanted: Sequence[int], count: int) -> list[Shape]:
    """The best `count` of the grid of starts and lengths by least squares, each with several ends of it."""
    steps, rates = _after(entries, held)
    if not len(steps):
        return []
    last = entries[-1].step
    lengths = np.geomspace(1, 3 * last + 10, LENGTHS).round().astype(int)
    starts = _starts(entries, held)
    totals = {*wanted, int(last), int(last) + 1, *sample(1, max(1, int(last)), 8)}
    pairs = {(s, s + int(n)) for s in starts for n in lengths} | {(s, t) for s in starts for t in totals if t > s}
    marks = np.array(sorted(pairs), dtype=float)
    shares = _shares(held, steps, marks)
    squares = _squares(shares, rates, None if held.warmup == 0 and not held.family.startswith("wsd") else held.peak)
    asked = [k for k in range(len(marks)) if marks[k, 1] in wanted or marks[k, 1] in (last, last + 1)]
    asked = sorted(asked, key=lambda k: float(squares[k]))[: count // 4]
    chosen = dict.fromkeys([*np.argsort(squares, kind="stable")[:count].tolist(), *asked])
    shapes = [replace(held, stable_end=int(marks[k, 0]), total=int(marks[k, 1])) for k in chosen]
    return [with_ends for shape in shapes for with_ends in ends(entries, shape)]


def _starts(entries: Sequence[Entry], held: Shape) -> list[int]:
    """Where the decay may start: from the last row of the first stay at the peak to the first row below it."""
    if not held.family.startswith("wsd"):
        return [held.warmup]
    rows = [e for e in entries if e.step + held.shift >= held.warmup]
    fall = next((k for k, e in enumerate(rows) if e.lr < held.peak - e.slack), len(rows) - 1)
    first = max(held.warmup, int(rows[fall - 1].step + held.shift) if fall else held.warmup)
    return sample(first, max(first, int(rows[fall].step + held.shift)), STARTS)


def ends(entries: Sequence[Entry], shape: Shape) -> list[Shape]:
    """The shape with its floor, and its peak where no row is at it, by least squares and rounded to fewer digits."""
    steps, rates = _after(entries, shape)
    if not len(steps) or not shape.stable_end < shape.total:  # nothing of a decay, as in a constant rate
        return [shape]
    share = _shares(shape, steps, np.array([[shape.stable_end, shape.total]]))
    floor = float(_floors(share, rates, shape.peak)[0])
    pairs = [(shape.peak, value) for value in _rounded(floor, float(min(rates)))]
    if shape.warmup == 0 and max(share[0]) < 1:
        pairs += _free_ends(share[0], rates)
    return [replace(shape, peak=peak, floor=low) for peak, low in pairs if 0 <= low <= peak]


def _rounded(value: float, *others: float) -> list[float]:
    return sorted({value, *others, *(float(f"{value:.{n}g}") for n in (1, 2, 4))})


def _free_ends(share: Any, rates: Any) -> list[tuple[float, float]]:
    """(peak, floor) by least squares of both, and rounded."""
    found, *_ = np.linalg.lstsq(np.stack([share, 1 - share], axis=1), rates, rcond=None)
    peak, floor = float(found[0]), max(0.0, float(found[1]))
    return [(top, low) for top in _rounded(peak) for low in _rounded(floor, 0.0)]


def _after(entries: Sequence[Entry], shape: Shape) -> tuple[Any, Any]:
    """Steps, as the formulas count, and rates of the rows from the end of the warm-up on."""
    rows = [(e.step + shape.shift, e.lr) for e in entries if e.step + shape.shift >= shape.warmup]
    return np.array([step for step, _ in rows]), np.array([lr for _, lr in rows])


def _shares(shape: Shape, steps: Any, marks: Any) -> Any:
    """The share of the peak in the rate, for each pair of marks (start, total) and step."""
    part = (steps[None, :] - marks[:, :1]) / (marks[:, 1:] - marks[:, :1])
    part = np.maximum(part, 0) if shape.unclamped else np.clip(part, 0, 1)
    return (1 + np.cos(np.pi * part)) / 2 if "cosine" in shape.family else 1 - part


def _squares(shares: Any, rates: Any, peak: float | None) -> Any:
    """For each pair of marks the least squares that a floor leaves, and a peak where none is given."""
    if peak is not None:
        floors = _floors(shares, rates, peak)
        off = floors[:, None] + (peak - floors)[:, None] * shares - rates
        return (off * off).sum(axis=1)
    centred, r = shares - shares.mean(axis=1, keepdims=True), rates - rates.mean()
    spread = (centred * centred).sum(axis=1)
    return (r * r).sum() - (centred @ r) ** 2 / np.where(spread > 0, spread, 1)


def _floors(shares: Any, rates: Any, peak: float) -> Any:
    """For each pair of marks the floor of least squares, in [0, peak]."""
    free = 1 - shares
    weight = (free * free).sum(axis=1)
    floors = (free * (rates - peak * shares)).sum(axis=1) / np.where(weight > 0, weight, 1)
    return np.clip(floors, 0, peak)
