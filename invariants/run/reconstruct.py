"""Which schedule fits the logged learning rates: a search over families, warm-up, plateau, total, peak and floor.

Coarse to fine: the rows before the peak give the warm-up, the decay's length is tried on a geometric grid for starts
between the last row at the peak and the first below it, the best are moved step by step. `proposals.py` proposes, in
NumPy; what a fit is worth is judged by the running formulas on every row. A fit holds when every row agrees to the digits
logged and there are more rows than parameters. Of fits that agree equally one with a declared total is named, then the one
with the roundest numbers; of cosines that are not clamped the slowest, since faster ones could hide between the rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from karat.core.run_log import RunLog
from karat.invariants.run import proposals
from karat.invariants.run.proposals import Entry
from karat.invariants.run.shapes import CONVENTIONS, FAMILIES, Shape

LOOKED_AT, SETTLED_BY, KEPT, CLIMBED = 64, 512, 24, 4
"""Rows that the search looks at, and that choose among its results; proposals of a warm-up that are judged; fits of a family
that are moved step by step."""
PARAMETERS = {"constant": 1, "linear": 4, "cosine": 4, "wsd": 5, "wsd, cosine decay": 5, "unclamped cosine": 4,
              "wsd, unclamped cosine decay": 5}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A shape and how it does: rows that agree, and the worst residual in units of the last digit logged."""

    shape: Shape
    agreeing: int
    rows: int
    worst: float
    squares: float

    @property
    def holds(self) -> bool:
        """Whether every row agrees, and there were more rows than parameters."""
        return self.agreeing == self.rows and self.rows > PARAMETERS[self.shape.family]


def fit_of(entries: Sequence[Entry], shape: Shape) -> Fit:
    """How a shape does on the rows, by the running formulas; a residual beyond any float counts as infinite."""
    agreeing, worst, squares = 0, 0.0, 0.0
    for entry in entries:
        off = abs(shape.rate(entry.step) - entry.lr)
        agreeing += off <= entry.slack
        units = off / entry.unit
        slacks = off / entry.slack
        worst, squares = max(worst, units), squares + slacks * slacks  # a product overflows to infinity, a power raises
    return Fit(shape, agreeing, len(entries), worst, squares)


def reconstruct(log: RunLog, hints: Iterable[int] = ()) -> Fit | None:
    """The best fit of all families; `hints`: totals that were declared. None without two rows of a positive rate."""
    points = [(s, lr) for s, lr in log.points("lr") if math.isfinite(lr) and lr >= 0 and s >= 0]
    if len(points) < 2 or not max(lr for _, lr in points) > 0:
        return None
    entries = [Entry(s, lr, log.slack("lr", lr) or math.ulp(0.0), log.digits["lr"].unit(lr)) for s, lr in points]
    wanted = tuple(hints)
    best: Fit | None = None
    for family in _families(entries):
        for fit in _family(entries, family, wanted):
            best = fit if best is None or _rank(fit, wanted) < _rank(best, wanted) else best
        if best is not None and best.holds:
            break
    return best and replace(best, shape=_named(best.shape))


def _named(shape: Shape) -> Shape:
    """A wsd without a plateau by its simpler name."""
    if shape.stable_end > shape.warmup:
        return shape
    simple = {"wsd": "linear", "wsd, cosine decay": "cosine", "wsd, unclamped cosine decay": "unclamped cosine"}
    return replace(shape, family=simple.get(shape.family, shape.family))


def _families(entries: Sequence[Entry]) -> list[str]:
    """The families that can fit at all: a rate that rises after it fell is of no clamped one, as INV-8 shows."""
    return [family for family in FAMILIES if ("unclamped" in family) == climbs_again(entries)]


def climbs_again(entries: Sequence[Entry]) -> bool:
    """Whether the rate rises, beyond rounding, after it fell below an earlier one."""
    top, low = entries[0].lr, math.inf
    for entry in entries:
        if entry.lr > low + 2 * entry.slack:
            return True
        if entry.lr < top - 2 * entry.slack:
            low = min(low, entry.lr)
        top = max(top, entry.lr)
    return False


def _rank(fit: Fit, wanted: Sequence[int]) -> tuple[float, ...]:
    """Better fits are smaller: rows that disagree, then squares; of fits of every row the simplest, see above."""
    shape = fit.shape
    if fit.agreeing < fit.rows:
        return (fit.rows - fit.agreeing, fit.squares)
    slow = shape.stable_end - shape.total if shape.unclamped else 0
    return (
        0,
        FAMILIES.index(shape.family),
        slow,
        shape.total not in wanted,
        abs(shape.shift),
        _digits(shape),
        fit.squares,
    )


def _digits(shape: Shape) -> int:
    """How many digits it takes to write the shape down: round numbers are likelier to have been meant."""
    marks = (shape.warmup, shape.stable_end, shape.total)
    return sum(len(str(mark).rstrip("0")) for mark in marks) + len(f"{shape.peak:.12g}{shape.floor:.12g}")


def _family(entries: Sequence[Entry], family: str, wanted: Sequence[int]) -> list[Fit]:
    """The fits of one family: every convention and warm-up that the rows allow, the best of them moved step by step."""
    few = proposals.thinned(entries, LOOKED_AT)
    fits: list[Fit] = []
    for shift, from_zero in CONVENTIONS:
        base = Shape(family, 0, 0, 0, 0.0, 0.0, shift, from_zero)
        for held in proposals.warm(entries, base):
            if family == "constant":
                fits.append(fit_of(few, replace(held, floor=held.peak)))
            else:
                fits += [fit_of(few, s) for s in proposals.decays(few, held, wanted, KEPT)]
    fits.sort(key=lambda fit: _rank(fit, wanted))
    apart = {(f.shape.shift, f.shape.from_zero, f.shape.warmup, f.shape.peak): f for f in reversed(fits)}
    chosen = dict.fromkeys([*fits[:CLIMBED], *sorted(apart.values(), key=lambda fit: _rank(fit, wanted))[:CLIMBED]])
    climbed = [fit if fit.agreeing == fit.rows else _climb(few, fit) for fit in chosen]
    more = proposals.thinned(entries, SETTLED_BY)
    shapes = dict.fromkeys(shape for fit in climbed for shape in (fit.shape, *proposals.ends(more, fit.shape)))
    settled = sorted((fit_of(more, shape) for shape in shapes), key=lambda fit: _rank(fit, wanted))
    return [fit_of(entries, fit.shape) for fit in settled[:2]]


def _climb(entries: Sequence[Entry], best: Fit) -> Fit:
    """The fit moved in its marks by ever smaller strides while that makes its squares smaller."""
    stride = max(1, (best.shape.total - best.shape.stable_end) // 32)
    while stride and best.agreeing < best.rows:
        moves = (_moved(best.shape, a, b) for a, b in itertools.product((-stride, 0, stride), repeat=2) if a or b)
        tried = [fit_of(entries, shape) for m in moves if m for shape in proposals.ends(entries, m)]
        better = min(tried, key=lambda f: f.squares, default=best)
        if better.squares < best.squares:
            best = better
        else:
            stride //= 2
    return best


def _moved(shape: Shape, start: int, end: int) -> Shape | None:
    """The shape with its marks moved; None where they would be out of order. Only wsd has a start of its own."""
    if start and not shape.family.startswith("wsd"):
        return None
    stable_end, total = shape.stable_end + start, shape.total + end
    if not shape.warmup <= stable_end < total:
        return None
    return replace(shape, stable_end=stable_end, total=total)
