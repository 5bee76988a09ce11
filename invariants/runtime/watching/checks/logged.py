"""RUN-47 and RUN-48: the losses that the loop logs, in windows, and the validation losses beside them.

A loss that is a tensor comes over with everybody's next transfer, and is judged then; nothing waits for the device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from karat.core.formulas import descent
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
Window = tuple[float, float]
"""Mean and variance of a window of losses."""


class LoggedLosses(Check):
    rules = (TREND, VALIDATION)
    interval = "every window of logged losses"

    def __init__(self) -> None:
        self._count, self._last = 0, math.nan
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._first: dict[int, Window] = {}
        self._lowest: dict[int, Window] = {}
        self._rows: list[tuple[int, float, float]] = []
        self._terms = False
        """Whether the training loss is a sum of terms, of which a validation may leave some out."""

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        step = max(0, loop.step - 1)
        if "loss" in logged:
            self._terms = self._terms or _several_terms(logged["loss"])
            number(loop, logged["loss"], lambda loss: self._trained(loop, step, loss))
        if "val_loss" in logged:
            number(loop, logged["val_loss"], lambda loss: self._validated(loop, step, loss))

    def _trained(self, loop: Loop, step: int, loss: float) -> None:
        self._count, self._last = self._count + 1, loss
        self._recent.append(loss)
        if self._count % LEAST_WINDOW == 0 and self._count <= 2 * WINDOW:
            self._closed(loop, step, LEAST_WINDOW)
        if self._count % WINDOW == 0:
            self._closed(loop, step, WINDOW)

    def _closed(self, loop: Loop, step: int, size: int) -> None:
        """A window is full: it is compared with the lowest and the first of its size."""
        losses = list(self._recent)[-size:]
        now = descent.window_mean(losses), descent.window_variance(losses)
        if not all(map(math.isfinite, now)):
            return
        first, lowest = self._first.setdefault(size, now), self._lowest.setdefault(size, now)
        if now[0] <= lowest[0]:
            self._lowest[size] = now
        if self._count < 2 * size:
            return
        windows = inv01.Windows(size, inv01.DEFAULT.z, max(SHARE * abs(first[0]), 1e-12))
        seen = {"early_mean": lowest[0], "early_variance": lowest[1], "late_mean": now[0], "late_variance": now[1]}
        margin = float(inv01.margin(seen, windows))
        loop.judge(
            TREND, step, TREND.margin(margin, 0.0) if now[0] > first[0] else max(0.0, margin),
            lambda: {
                "message": f"the loss climbs: {now[0]:.4g} over the last {size} rows, {lowest[0]:.4g} before, "
                f"{first[0]:.4g} at the start",
                "evidence": f"INV-1 on windows of {size} rows, z = {windows.z:g}, tolerance {windows.tolerance:.3g}",
            },
        )  # fmt: skip

    def _validated(self, loop: Loop, step: int, loss: float) -> None:
        before = self._last
        if self._terms:
            loop.not_checked(
                VALIDATION, "the training loss has several terms, the validation loss is one that it may not have"
            )
            return
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
            why = f"{self._count} losses were logged; guards.log(loss=…) feeds it, two windows of {LEAST_WINDOW} rows"
            loop.not_checked(TREND, why)
        if not loop.tallies[VALIDATION.id].checks:
            why = f"{len(self._rows)} rows of guards.log(loss=…, val_loss=…); it needs {LEAST_ROWS}"
            loop.not_checked(VALIDATION, why)


def _several_terms(loss: Any) -> bool:
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    if node is None or not type(node).__name__.startswith("AddBackward"):
        return False
    return all(n is not None for n, _ in node.next_functions)


def number(loop: Loop, given: Any, take: Callable[[float], None]) -> None:
    """A logged number now, or when it is on the host."""
    if isinstance(given, Tensor):
        if given.numel() == 1:
            given = given.detach()
            ready = given if given.dtype is torch.float32 and not given.ndim else given.float().reshape(())
            loop.transfer.ask([ready], lambda numbers: take(numbers[0]))
    elif isinstance(given, (int, float)) or hasattr(given, "__float__"):
        take(float(given))
