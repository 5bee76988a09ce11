"""RUN-48: a validation loss above that of the untrained model, where the training loss has long come down: the labels or the
inputs of the validation are others than those of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run48_validation import RULE
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.logged import number
from karat.invariants.runtime.watching.loop import Loop

WORSE, BEYOND = 1.15, 5.0
"""Times the first training loss: what the last of these validation losses is at least, and what one of the same unit is at
most."""
LEARNT = 0.8
"""Of the first training loss, below which something was learnt."""
ROWS = 3
"""First evaluations, all of them worse; later a model that fits its data too well is so, too."""


class WorseThanUntrained(Check):
    rules = (RULE,)
    interval = "first evaluations"
    heard = True

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = math.nan
        self._given: Any = None
        self._rows: list[tuple[int, float, float]] = []

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        if "loss" in logged:
            given = logged["loss"]
            if self._first is None:
                number(loop, given, self._began)
            self._given = given.detach() if isinstance(given, Tensor) else given
        if "val_loss" in logged and self._given is not None:
            number(loop, self._given, self._trained)
            number(loop, logged["val_loss"], partial(self._validated, loop, loop.step))
            self._given = None
        if len(self._rows) >= ROWS:
            loop.off(self)

    def _began(self, loss: float) -> None:
        self._first = loss if self._first is None else self._first

    def _trained(self, loss: float) -> None:
        self._last = loss

    def drop(self) -> None:
        self._given = None

    def _validated(self, loop: Loop, step: int, loss: float) -> None:
        first, last = self._first, self._last
        if first is None or not first > 0 or not all(map(math.isfinite, (first, last, loss))):
            return
        self._rows.append((step, last, loss))
        learnt = [row for row in self._rows if row[1] < LEARNT * first]
        if len(self._rows) != ROWS or len(learnt) < ROWS - 1:
            return
        if all(first < row[2] < BEYOND * first for row in self._rows) and loss > WORSE * first:
            loop.judge(
                RULE, step, RULE.margin(3.0, 2.0),
                partial(
                    dict, message=f"the validation loss is {loss:.4g}, above the {first:.4g} of the first training step, at each "
                    f"of {ROWS} evaluations, and the training loss came down to {last:.4g}: the validation has other labels, or "
                    "inputs made another way", where="worse than untrained", severity=Severity.WARN,
                    evidence="; ".join(f"step {s}: {v:.4g} against {t:.4g}" for s, t, v in self._rows),
                ),
            )  # fmt: skip
