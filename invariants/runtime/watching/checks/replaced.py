"""RUN-9 and RUN-35: what was not finite, and was made so by the loop: gradients between the backward and the step, and sums
that float16 cannot hold, of which nothing comes back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import CLOSE, TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run09_finite import RULE
from karat.invariants.run.run35_overflow import RULE as OVERFLOW
from karat.invariants.runtime.watching.anchors import Anchor
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import nodes
from karat.invariants.runtime.watching.loop import Loop

HIDES = ("NanToNumBackward", "ClampBackward", "ClampMaxBackward")
"""Nodes that may stand for a number where an infinity was."""


class Replaced(Check):
    """The hooks on the anchors take the size of what a backward brings, in steps in which turns are taken, and in all once a
    step applied nothing but zeros."""

    rules = (RULE,)
    interval = TURNS
    heard = True

    def __init__(self) -> None:
        self._marked: dict[int, list[Anchor]] = {}
        """Of each optimizer, until its next step."""
        self._brought: dict[int, tuple[list[Anchor], list[float]]] = {}

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._marked or loop.step % CLOSE or loop.between(loop.step) or not torch.is_grad_enabled():
            return
        for index, anchors in loop.anchors.items():
            self._mark(index, [a for a in anchors if not a.measured])

    def _mark(self, index: int, anchors: list[Anchor]) -> None:
        self._marked[index] = anchors
        for anchor in anchors:
            anchor.measured = True

    def _unmark(self, index: int) -> None:
        for anchor in self._marked.pop(index, ()):
            anchor.measured = False

    def look(self, loop: Loop, moment: Moment) -> None:
        came = [a for a in loop.anchors.get(moment.index, ()) if a.brought]
        if came:
            loop.transfer.ask([a.brought[-1].float() for a in came], partial(self._keep, moment.index, came))

    def _keep(self, index: int, came: list[Anchor], numbers: list[float]) -> None:
        self._brought[index] = came, numbers

    def before_step(self, loop: Loop, moment: Moment) -> None:
        index = moment.index
        if index in self._marked:
            self._unmark(index)
        came, numbers = self._brought.pop(index, ([], []))
        zero = [a for a in loop.anchors.get(index, ()) if moment.norms.get(a.place) == 0 and not a.measured]
        if zero:  # what comes next is looked at
            self._mark(index, zero)
        if not came or moment.scaled or moment.closure or all(map(math.isfinite, numbers)):
            return
        bad = [
            anchor for anchor, number in zip(came, numbers, strict=True)
            if not math.isfinite(number) and math.isfinite(moment.norms.get(anchor.place, math.nan))
        ]  # fmt: skip
        if bad:
            nothing = not any(moment.norms.values())
            loop.judge(
                RULE, moment.step, RULE.margin(len(bad), 0),
                lambda: {
                    "message": f"the backward brought NaN or an infinity to {bad[0].name}, and the loop replaced it before the "
                    "step: " + ("the step applies zeros" if nothing else "the step goes by the rest"),
                    "where": "replaced gradients", "severity": Severity.WARN,
                    "evidence": f"what came to {len(bad)} of {len(came)} gradients is not finite, what is applied is",
                },
            )  # fmt: skip

    def drop(self) -> None:
        for index in list(self._marked):
            self._unmark(index)
        self._brought = {}


def out_of_range(loop: Loop, step: int, terms: Mapping[str, Tensor]) -> None:
    """Terms in whose graph, before its backward, an infinity in float16 was made a number."""
    for name, term in terms.items():
        found = any(kind.startswith(HIDES) and _infinite(node) for kind, node in nodes(term))
        loop.judge(
            OVERFLOW, step, OVERFLOW.margin(float(found), 0.0),
            partial(
                dict, message=f"in the term {name!r} a sum in float16 is beyond its largest number, 65504, and was replaced "
                "by a number: no gradient comes back through it. Take the sum in float32",
                where=name, severity=Severity.WARN, evidence="an infinity at nan_to_num or clamp in the graph of the term",
            ),
        )  # fmt: skip


def _infinite(node: Any) -> bool:
    """Whether what went into a node is in float16 and reaches an infinity; not where a mask of -inf does."""
    with contextlib.suppress(RuntimeError):  # the backward has been there
        saved = getattr(node, "_saved_self", None)
        if isinstance(saved, Tensor) and saved.dtype is torch.float16 and saved.numel():
            return bool(torch.isposinf(saved.detach()).any())
    return False
