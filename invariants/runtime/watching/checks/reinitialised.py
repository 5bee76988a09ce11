"""RUN-16: weights that are drawn anew in the middle of a run."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from karat.invariants.run.cadence import LATER, TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.sampling import View, fit

MOST, SAMPLE = 4, 64
"""Matrices, and numbers of each."""
NEAR = 8
"""Steps that a sample may be old."""
OTHER = 0.3
"""The cosine of what a matrix is to what it was, from which on it is another one."""
SIZES = (0.2, 5.0)
"""The size of what it is over that of what it was, between which it is drawn anew, and has not run away."""
LEAST = 2

Views = list[tuple[str, View]]
"""Names of matrices, and a view of some numbers of each."""


class Reinitialised(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, Views, Tensor]] = {}
        """Of each optimizer the step before which some matrices were looked at, which, and (matrices, numbers) of them."""
        self._views: dict[int, tuple[int, Views]] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        step, views, old = self._kept.pop(moment.index, (-NEAR - 1, [], None))
        if loop.tallies[RULE.id].violations or moment.step > LATER:  # from then on turns are further apart than NEAR
            loop.off(self)
            return
        now = numbers(views)
        if old is not None and now is not None and moment.step - step <= NEAR and loop.loaded <= step:
            anew = [name for (name, _), drawn in zip(views, other(old, now), strict=True) if drawn]
            if len(anew) >= LEAST and 2 * len(anew) > len(views):
                self._say_anew(loop, moment.step, step, anew, len(views))
        chosen = self._chosen(loop, moment)
        if chosen is not views:
            now = numbers(chosen)
        if now is not None:
            self._kept[moment.index] = moment.step, chosen, now

    def _say_anew(self, loop: Loop, step: int, before: int, anew: list[str], count: int) -> None:
        loop.judge(
            RULE, step, RULE.margin(2.0, 1.0),
            partial(
                dict, message=f"{some(anew)} have nothing to do with what they were before step {before}: something drew the "
                "weights anew in the middle of the run", where="drawn anew", severity=Severity.WARN,
                evidence=f"{len(anew)} of {count} matrices are of the size that they had, in other directions",
            ),
        )  # fmt: skip

    def _chosen(self, loop: Loop, moment: Moment) -> Views:
        """A few matrices of one type on one device."""
        read, chosen = self._views.get(moment.index, (-1, []))
        if read != loop.renamed:
            able = [
                h for h in moment.held
                if h.name and h.parameter.ndim > 1 and h.parameter.numel() >= SAMPLE and fit(h.parameter)
            ]  # fmt: skip
            alike = [h for h in able if _kind(h.parameter) == _kind(able[0].parameter)]
            chosen = [(h.name, View(h.parameter, SAMPLE)) for h in alike[:: max(1, -(-len(alike) // MOST))]]
            self._views[moment.index] = loop.renamed, chosen
        return chosen

    def drop(self) -> None:
        self._kept, self._views = {}, {}


def _kind(parameter: Tensor) -> tuple[torch.dtype, torch.device]:
    return parameter.dtype, parameter.device


def numbers(views: Views) -> Tensor | None:
    """(matrices, numbers) as they are, as a copy; None where there is none, or one is not in one piece any more."""
    try:
        return torch.stack([view.now() for _, view in views]) if views else None
    except (RuntimeError, ValueError):
        return None


def other(old: Tensor, new: Tensor) -> list[bool]:
    """Of each row of numbers whether it is drawn anew: as large as it was, in another direction."""
    a, b = old.float(), new.float()
    found = []
    for aa, ab, bb in zip((a * a).sum(1).tolist(), (a * b).sum(1).tolist(), (b * b).sum(1).tolist(), strict=True):
        sized = aa > 0 and SIZES[0] ** 2 < bb / aa < SIZES[1] ** 2
        found.append(bool(sized and ab < OTHER * (aa * bb) ** 0.5))
    return found
