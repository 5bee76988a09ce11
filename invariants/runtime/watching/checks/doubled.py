"""RUN-31: batches whose rows are copies: both views of a pair are one, or every row is the same object seen many times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run31_inputs import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain

LEAST_ROWS = 8
COLUMNS = 64
"""Numbers of each row that are compared."""
FIRST = 64
STEPS = 3
"""Looks in a row at which the rows are copies."""


class Doubled(Check):
    rules = (RULE,)
    interval = "first steps"
    spaced = True

    def __init__(self) -> None:
        self._seen: dict[str, list[Tensor]] = {"halves": [], "all": []}
        self._since: dict[str, int] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if moment.step - loop.first >= FIRST:
            loop.off(self)
            return
        if captured is None or moment.index:
            return
        kind = ""
        rows = _rows([t for _, t in leaves((captured.args, captured.kwargs))])
        if rows is not None:
            kind = copies(rows)
        if kind == "halves" and any(map(drawn, captured.outputs.values())):
            kind = ""  # two samples of each
        for other in self._seen:
            if other != kind:
                self._seen[other] = []
        if not kind or rows is None:
            if not loop.dense(moment.step):
                loop.off(self)
            return
        seen = self._seen[kind]
        if seen and seen[-1].shape == rows[:1].shape and torch.equal(seen[-1], rows[:1]):
            return  # the same batch again: a constant, which may be meant
        if not seen:
            self._since[kind] = moment.step
        seen.append(rows[:1].clone())
        if len(seen) == STEPS:
            self._say(loop, kind, len(rows))

    def _say(self, loop: Loop, kind: str, count: int) -> None:
        message = (
            f"all {count} rows of a batch are one, in {STEPS} batches, each of them another: they are views of one thing that "
            "changes. Keep copies of it"
            if kind == "all"
            else f"rows {count // 2} to {count - 1} of the batch are rows 0 to {count // 2 - 1} again, in {STEPS} batches: two "
            "views of each sample are drawn alike"
        )
        loop.judge(
            RULE, self._since[kind], RULE.margin(1.0, 0.0),
            partial(dict, message=message, where="rows", severity=Severity.WARN, evidence="equal to the last bit"),
        )  # fmt: skip
        loop.off(self)

    def drop(self) -> None:
        self._seen = {"halves": [], "all": []}


def _rows(tensors: Sequence[Tensor]) -> Tensor | None:
    """The rows of a batch, of all that has its size, some numbers of each; None where some are no floats."""
    several = [t.detach() for t in tensors if t.ndim and len(t) >= LEAST_ROWS]
    size = max(map(len, several), default=0)
    those = [t for t in several if len(t) == size]
    if not those or not all(t.is_floating_point() and t.ndim > 1 and t.numel() and plain(t) for t in those):
        return None
    flat = [t.flatten(1) for t in those]
    return torch.cat([t[:, :: max(1, t.shape[1] // COLUMNS)].float() for t in flat], 1)


def copies(rows: Tensor) -> str:
    """ "all" where all rows are one, "halves" where the second half is the first and its rows differ, else nothing."""
    if not bool(torch.isfinite(rows).all()):
        return ""
    if bool((rows == rows[:1]).all()):
        return "all"
    half = len(rows) // 2
    if len(rows) % 2 or not torch.equal(rows[:half], rows[half:]):
        return ""
    return "halves" if len(torch.unique(rows[:half], dim=0)) == half else ""


def drawn(output: Tensor) -> bool:
    """Whether the halves of an output are others, as where something is drawn for each row."""
    half = len(output) // 2 if output.ndim else 0
    return half > 0 and not torch.allclose(output[:half].float(), output[half : 2 * half].float(), rtol=1e-3, atol=1e-5)
