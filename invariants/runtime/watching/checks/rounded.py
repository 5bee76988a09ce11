"""RUN-33: a model that was turned to a shorter type to be evaluated or saved, and back, comes back with each number rounded."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run33_precision import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks.rounding import LOW
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import roots, some, unwrapped
from karat.invariants.runtime.watching.sampling import fit, sharded, spread
from karat.invariants.runtime.watching.unsaved import Unsaved, before_saving

FULL = (torch.float32, torch.float64)
MOST, LEAST = 4, 16
"""Parameters that are looked at, and elements that one must have to tell."""
SHARE = 0.5
"""Of the elements of a sample: those that a shorter type cannot hold, of a parameter that was trained in a longer one."""


class Rounded(Check):
    rules = (RULE,)
    interval = "forwards in another type"
    heard = True

    def __init__(self) -> None:
        self._few: dict[str, tuple[Tensor, torch.dtype]] = {}
        self._fine: set[str] = set()
        """Those that were seen to hold numbers which no shorter type has."""
        self._turned: tuple[int, torch.dtype] | None = None
        self._handles: list[Unsaved] = []

    def start(self, loop: Loop) -> None:
        full = {n: p for n, p in loop.trainable().items() if p.dtype in FULL and p.numel() >= LEAST and fit(p)}
        if not full or sharded(loop.model):
            loop.off(self)
            return
        chosen = list(full)[:: -(-len(full) // MOST)]
        self._few = {n: (full[n], full[n].dtype) for n in chosen}
        self._look()
        running, own = weakref.ref(loop), weakref.ref(self)

        def saved(module: nn.Module, *rest: Any) -> None:
            there, check = running(), own()
            if there is not None and check is not None:
                check._note(there)

        self._handles = [before_saving(unwrapped(module), saved) for _, module in roots(loop.model)]

    def _look(self) -> None:
        """Notes which are finer than a shorter type: weights that were read from a file in one are not, up to a step."""
        for name, (parameter, full) in self._few.items():
            if name not in self._fine and parameter.dtype is full and fit(parameter):
                sample = spread(parameter)
                if all(float((~held(sample, low)).float().mean()) > SHARE for low in LOW):
                    self._fine.add(name)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._note(loop)

    def _note(self, loop: Loop) -> None:
        """Whether the parameters are of a shorter type now; then they are looked at before the next step."""
        if self._turned is not None:
            return
        for parameter, _ in self._few.values():
            if parameter.dtype in LOW:
                self._turned = loop.step, parameter.dtype
                loop.stir()
                return

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._turned is None:
            if len(self._fine) < len(self._few) and loop.dense(moment.step):
                self._look()
            return
        (step, low), self._turned = self._turned, None
        back = {n: p for n, (p, full) in self._few.items() if n in self._fine and p.dtype is full and fit(p)}
        if step != loop.step or not back:
            return
        rounded = [name for name, p in back.items() if bool(held(spread(p), low).all())]
        kind = str(low).removeprefix("torch.")
        loop.judge(
            RULE, moment.step, RULE.margin(float(len(rounded) == len(back)), 0.0),
            lambda: {
                "message": f"the weights were rounded to {kind} before step {moment.step}: the model was turned to {kind} to be "
                "evaluated or saved, and back. Use torch.autocast, or a copy of the model",
                "where": rounded[0], "severity": Severity.WARN, "phase": "between two steps",
                "evidence": f"every sampled number of {some(rounded)} is one of {kind} now, and was not before",
            },
        )  # fmt: skip
        if rounded:
            loop.off(self)

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._few, self._fine = {}, set()


def held(sample: Tensor, low: torch.dtype) -> Tensor:
    """Which elements a shorter type can hold as they are."""
    return sample.to(low).to(sample.dtype) == sample
