"""Sees that the forward may be another one than it was, and asks for a new look at it: `loop.news` says what changed.

What changes by itself tells nothing: what was not the same throughout the first steps, and what changed more than twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from karat.invariants.run.cadence import SETTLED
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.traits import Attributes, of_arguments, of_call, of_graph

EARLY, LATE = 4, 8
"""Steps between two looks: up to SETTLED, and then."""
MOST = 2
"""Changes of one thing that are news."""


class Changes(Check):
    """No rule of its own: the probes judge what is new."""

    spaced = True

    def __init__(self) -> None:
        self._attributes: Attributes | None = None
        self._last: dict[tuple[int, str], dict[str, Any]] = {}
        """Traits of the calls of each module, of their arguments, of their graphs."""
        self._counts: dict[Any, int] = {}

    def start(self, loop: Loop) -> None:
        self._attributes = Attributes(loop.model)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Of the forward that is kept: the graph, which is there now, and the arguments."""
        captured = loop.captured
        if captured is None or captured.kwargs is not kwargs or not torch.is_grad_enabled():
            return
        outputs = [t for _, t in leaves(output) if t.requires_grad]
        self._compare(loop, (id(module), "graph"), of_graph(outputs))
        if loop.looked(loop.step):
            self._compare(loop, (id(module), "arguments"), of_arguments(args, kwargs))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        step = moment.step
        if moment.index or not (step % (EARLY if step < SETTLED else LATE) == 0 or step - loop.first < DENSE):
            return
        if self._attributes is not None:
            changed = self._attributes.changed()
            if step > loop.first:  # before, a loop is set up
                self._news(loop, changed)
        if loop.call is not None:
            module, args, kwargs, autocast = loop.call
            self._compare(loop, (id(module), "call"), of_call(module, args, kwargs, autocast))
        if step == DENSE - 1 or (loop.dense(step) and step > DENSE):
            self._attributes = Attributes(loop.model)  # with what came to the model since

    def _compare(self, loop: Loop, key: tuple[int, str], now: dict[str, Any]) -> None:
        before = self._last.get(key)
        self._last[key] = now
        if before is None or before == now:
            return
        names = dict.fromkeys((*before, *now))
        self._news(loop, {
            name: f"was {before.get(name, 'not there')}, and is {now.get(name, 'not there')}"
            for name in names if before.get(name) != now.get(name)
        }, key[0])  # fmt: skip

    def _news(self, loop: Loop, changed: dict[str, str], of: int = 0) -> None:
        news = ""
        for name, how in changed.items():
            count = self._counts[of, name] = self._counts.get((of, name), 0) + 1
            if loop.step - loop.first <= DENSE:
                self._counts[of, name] = MOST + 1
            elif count <= MOST and not news:
                news = f"{name} {how}"
        if news:
            loop.news = loop.news or f"{news} (seen at step {loop.step})"
            loop.capture_next = True

    def drop(self) -> None:
        self._attributes = None
        self._last = {}
