"""RUN-31: batches that are parts of one tensor, to which something is added in place: noise piles up from epoch to epoch."""

from __future__ import annotations

import weakref
from functools import partial

import torch
from torch import Tensor

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run31_inputs import RULE
from karat.invariants.runtime.preflight.trees import leaves, spelled
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain

MOST = 64
ROWS, LEAST_ROWS, COLUMNS = 32, 4, 64
AGAIN = 4
"""Parts that came again with something added."""
ALIKE = 0.25
"""How far from 1 the slope of what it is on what it was may be."""
LEAST_FIT, LEAST_MORE = 0.4, 0.02
"""Of the variance of what it is: the part that was there before, at least, and that which came, at least."""

Kept = tuple[weakref.ref[Tensor], int, Tensor]


class Piled(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, tuple[int, ...]], Kept] = {}
        self._more = 0

    def before_step(self, loop: Loop, moment: Moment) -> None:
        call = loop.call
        for path, given in leaves((call[1], call[2])) if call is not None else ():
            base = given._base
            if base is None or base.requires_grad or base.is_inference() or not given.is_floating_point():
                continue
            if given.ndim < 2 or len(given) < LEAST_ROWS or len(base) <= len(given) or not plain(given):
                continue
            place, now = (id(base), int(given.storage_offset()), tuple(given.shape)), sample(given)
            kept = self._kept.get(place)
            if kept is None and len(self._kept) >= MOST:
                continue
            self._kept[place] = weakref.ref(base), base._version, now
            if kept is None or kept[0]() is not base or kept[1] == base._version or torch.equal(kept[2], now):
                continue
            self._more = self._more + 1 if piled(kept[2], now) else 0
            if self._more == AGAIN:
                self._say(loop, moment.step, spelled(path[1:]))
                return

    def _say(self, loop: Loop, step: int, where: str) -> None:
        loop.judge(
            RULE, step, RULE.margin(1.0, 0.0),
            partial(
                dict, message="batches come back with something added to them in place: each epoch adds to the data of the one "
                "before. Add it to a copy", where=where, severity=Severity.WARN,
                evidence=f"{AGAIN} parts of one tensor are what they were, and more",
            ),
        )  # fmt: skip
        loop.off(self)

    def drop(self) -> None:
        self._kept = {}


def sample(given: Tensor) -> Tensor:
    """Some rows and columns of a batch, as a copy."""
    rows = given.detach()[:ROWS].flatten(1)
    return rows[:, :: max(1, rows.shape[1] // COLUMNS)][:, :COLUMNS].double()


def piled(old: Tensor, new: Tensor) -> bool:
    """Whether numbers are what they were, and something that has nothing to do with it, row by row and column by column."""
    if old.shape != new.shape or not bool(torch.isfinite(old).all() & torch.isfinite(new).all()):
        return False
    a, b = old - old.mean(0), new - new.mean(0)
    before, now = float(a.square().mean()), float(b.square().mean())
    if not before > 0 or not now > 0:
        return False
    slope = float((a * b).mean()) / before
    there = slope * slope * before / now
    return abs(slope - 1) < ALIKE and LEAST_FIT < there < 1 - LEAST_MORE and now > before
