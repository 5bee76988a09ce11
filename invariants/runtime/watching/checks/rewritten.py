"""RUN-31: batches that are parts of one tensor, which training changes in place: they come back scaled once more.

A part that comes again is compared with what it was when it was last looked at. Where each of its columns is a multiple of
what it was, and a shift, it was scaled or normalised in place; a buffer that is filled anew holds something else.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run31_inputs import RULE
from karat.invariants.runtime.preflight.trees import leaves, spelled
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain

MOST = 64
"""Parts that are kept of each run."""
ROWS, LEAST_ROWS, COLUMNS = 32, 8, 16
PARTS = 2
"""Parts of one tensor that were seen, at least: a buffer that is filled for each step is always the same one."""
DISTINCT = 4
"""Different numbers in a column that tells: two are on a line whatever they were."""
EXACT, CHANGED = 1e-4, 1e-2
"""Of the spread of a column: what is left of it by the best line, and how far it is from what it was."""

Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of a tensor as it was. version: how often that tensor had been written to."""

    base: weakref.ref[Tensor]
    version: int
    step: int
    sample: Tensor


class Rewritten(Check):
    rules = (RULE,)
    interval = "in turn"
    spaced = True

    def __init__(self) -> None:
        self._kept: dict[Place, Kept] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        call = loop.call
        if call is None:
            return
        for path, given in leaves((call[1], call[2])):
            base = given._base
            if (
                base is None
                or base.requires_grad
                or given.ndim < 2
                or not given.is_floating_point()
                or not plain(given)
            ):
                continue
            if len(given) < LEAST_ROWS or base.is_inference():
                continue
            place = (id(base), int(given.storage_offset()), tuple(given.shape), given.stride())
            kept, now = self._kept.get(place), base._version
            if kept is not None and kept.base() is base and kept.version == now:
                continue
            sample = _sample(given)
            self._keep(place, Kept(weakref.ref(base), now, moment.step, sample))
            if kept is None or kept.base() is not base or self._parts(base) < PARTS:
                continue
            if kept.step < moment.step and scaled(kept.sample, sample):
                self._say(loop, moment.step, spelled(path[1:]), kept.step)
                return

    def _keep(self, place: Place, kept: Kept) -> None:
        if place in self._kept or len(self._kept) < MOST:
            self._kept[place] = kept
            return
        for other in [p for p, k in self._kept.items() if k.base() is None]:
            del self._kept[other]

    def _parts(self, base: Tensor) -> int:
        return sum(kept.base() is base for kept in self._kept.values())

    def _say(self, loop: Loop, step: int, where: str, before: int) -> None:
        loop.judge(
            RULE, step, RULE.margin(1.0, 0.0),
            lambda: {
                "message": f"the batch of step {step} is that of step {before}, scaled or shifted in place: training changes the "
                "data it is given, and each epoch changes them again",
                "where": where, "severity": Severity.WARN,
                "evidence": "it is a part of one tensor that was written to; each column is a line of what it was",
            },
        )  # fmt: skip
        loop.off(self)

    def drop(self) -> None:
        self._kept = {}


def _sample(given: Tensor) -> Tensor:
    """Some rows and columns of a batch, as a copy."""
    rows = given.detach()[:ROWS].flatten(1)
    return rows[:, :: max(1, rows.shape[1] // COLUMNS)][:, :COLUMNS].clone()


def scaled(old: Tensor, new: Tensor) -> bool:
    """Whether each column is another one than it was, or the same, and all of them exact lines of what they were."""
    old, new = old.double(), new.double()
    if not bool(torch.isfinite(old).all() & torch.isfinite(new).all()):
        return False
    a, b = old - old.mean(0), new - new.mean(0)
    spread_old, spread_new = a.square().mean(0), b.square().mean(0)
    alive = (spread_old > 0) & (spread_new > 0)
    if not bool(alive.any()) or bool(((spread_new > 0) != (spread_old > 0)).any()):
        return False
    a, b, spread_old, spread_new = a[:, alive], b[:, alive], spread_old[alive], spread_new[alive]
    slope = (a * b).mean(0) / spread_old
    left = (b - slope * a).square().mean(0) / spread_new
    moved = (new - old)[:, alive].square().mean(0) / torch.maximum(spread_old, spread_new)
    several = torch.tensor([len(column.unique()) >= DISTINCT for column in new[:, alive].T], device=new.device)
    return bool((left < EXACT**2).all() & (slope > 0).all() & (several & (moved > CHANGED**2)).any())
