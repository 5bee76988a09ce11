"""RUN-47 and RUN-48: the losses that the loop logs, in windows, and the validation losses beside them.

A loss that is a tensor comes over with everybody's next transfer, and is judged then; nothing waits for the device.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from karat.invariants import inv01_descent as inv01
from karat.invariants.run.loss_checks import IMPLAUSIBLE, LEAST_WINDOW
from karat.invariants.run.run47_loss_trend import RULE as TREND
from karat.invariants.run.run48_validation import RULE as VALIDATION
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.loop import Loop

WINDOW = inv01.DEFAULT.window
SHARE = 0.05
"""Of the first window's mean: a rise by less, besides the noise, is none. INV-1 has as much in bits per byte."""
LEAST_ROWS = 3
KEPT = 100 * WINDOW
"""Rows up to which every window is compared; past them the first and the last two are."""


class Losses(Check):
    rules = (TREND, VALIDATION)
    interval = "every window of logged losses"

    def __init__(self) -> None:
        self._losses = array("d")
        self._rows: list[tuple[int, float, float]] = []

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        step = max(0, loop.step - 1)
        if "loss" in logged:
            _number(loop, logged["loss"], lambda loss: self._trained(loop, step, loss))
        if "val_loss" in logged:
            _number(loop, logged["val_loss"], lambda loss: self._validated(loop, step, loss))

    def _trained(self, loop: Loop, step: int, loss: float) -> None:
        self._losses.append(loss)
        count = len(self._losses)
        size = LEAST_WINDOW if count <= 2 * WINDOW else WINDOW
        if count % size or count < 2 * size:
            return
        last, at = list(self._losses[-size:]), range(0, count - size, size)
        earlier = [list(self._losses[start : start + size]) for start in at if count <= KEPT or start in (0, count - 2 * size)]
        if not all(math.isfinite(x) for window in (*earlier, last) for x in window):
            return
        means, now = [sum(window) / size for window in earlier], sum(last) / size
        lowest = min(range(len(means)), key=lambda place: means[place])
        windows = inv01.Windows(size, inv01.DEFAULT.z, max(SHARE * abs(means[0]), 1e-12))
        margin = float(inv01.margin(inv01.observe(earlier[lowest] + last), windows))
        worse = now > means[0]
        loop.judge(
            TREND, step, TREND.margin(margin, 0.0) if worse else max(0.0, margin),
            lambda: {
                "message": f"the loss climbs: {now:.4g} over the last {size} rows, {means[lowest]:.4g} before, "
                f"{means[0]:.4g} at the start",
                "evidence": f"INV-1 on windows of {size} rows, z = {windows.z:g}, tolerance {windows.tolerance:.3g}",
            },
        )  # fmt: skip

    def _validated(self, loop: Loop, step: int, loss: float) -> None:
        before = self._losses[-1] if self._losses else math.nan
        if not (math.isfinite(loss) and math.isfinite(before)) or before <= 0:
            return
        self._rows.append((step, before, loss))
        below = [row for row in self._rows if row[2] < IMPLAUSIBLE * row[1]]
        if len(self._rows) >= LEAST_ROWS:
            loop.judge(
                VALIDATION, step, VALIDATION.margin(len(below), LEAST_ROWS - 1),
                lambda: {
                    "message": f"the validation loss is {loss:.4g} where the training loss is {before:.4g}, "
                    f"and was below half of it at {len(below)} of {len(self._rows)} evaluations",
                    "evidence": "; ".join(f"step {s}: {b:.4g} against {a:.4g}" for s, a, b in below[:4]),
                },
            )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        loop.transfer.bring()
        if not loop.tallies[TREND.id].checks:
            why = f"{len(self._losses)} losses were logged; guards.log(loss=…) feeds it, two windows of {LEAST_WINDOW} rows"
            loop.not_checked(TREND, why)
        if not loop.tallies[VALIDATION.id].checks:
            why = f"{len(self._rows)} rows of guards.log(loss=…, val_loss=…); it needs {LEAST_ROWS}"
            loop.not_checked(VALIDATION, why)


def _number(loop: Loop, given: Any, take: Callable[[float], None]) -> None:
    """A logged number now, or when it is on the host."""
    if isinstance(given, Tensor):
        if given.numel() == 1:
            loop.transfer.ask([given.detach().float().reshape(())], lambda numbers: take(numbers[0]))
    elif isinstance(given, (int, float)) or hasattr(given, "__float__"):
        take(float(given))
