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


class LoggedLosses(Check):
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
        first, last = list(self._losses[:size]), list(self._losses[-2 * size :])
        if not all(map(math.isfinite, (*first, *last))):
            return
        mean = sum(first) / size
        windows = inv01.Windows(size, inv01.DEFAULT.z, max(SHARE * abs(mean), 1e-12))
        over_the_last = float(inv01.margin(inv01.observe(last), windows))
        over_the_first = float(inv01.margin(inv01.observe(first + last[size:]), windows))
        before, now = sum(last[:size]) / size, sum(last[size:]) / size
        loop.judge(
            TREND, step, TREND.margin(max(over_the_last, over_the_first), 0.0),
            lambda: {
                "message": f"the loss climbs: {now:.4g} over the last {size} rows, {before:.4g} over the {size} before, "
                f"{mean:.4g} over the first",
                "evidence": f"INV-1 on windows of {size} rows, z = {windows.z:g}, tolerance {windows.tolerance:.3g}: "
                f"margin {over_the_last:+.3g} to the window before, {over_the_first:+.3g} to the first",
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
