"""RUN-5: a ReduceLROnPlateau is stepped with what its mode is for: a loss is to fall, an accuracy to rise.

Its `best` is one of the numbers that it was given. Where that is, to the last bit, a number which the loop logged, the name
under which it was logged tells what it is.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import lr_scheduler

from karat.invariants.run.rule import Severity
from karat.invariants.run.run05_scheduler_steps import RULE
from karat.invariants.runtime.watching.attached import Followed
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks.logged import number
from karat.invariants.runtime.watching.loop import Loop

NEAR, FELL = (0.6, 1.6), 0.9
"""Shares of the best number between which the loss is when it is that loss, and below which it has fallen since."""
SHARE = 1.0
"""What no accuracy is above."""
KEPT = 256
"""Numbers that were logged last."""
FALLS = frozenset(("loss", "perplexity", "ppl", "nll", "mse", "mae", "rmse", "bpb"))
RISES = frozenset(("accuracy", "acc", "f1", "auc", "auroc", "bleu", "iou", "miou"))
TURNED = frozenset(("neg", "negative", "minus", "inverse", "one"))
"""Words that turn the others around."""


@dataclass(frozen=True, slots=True)
class Best:
    """What a scheduler called its best when it was first seen, the rates then, and the loss then, if it was as large."""

    best: float
    rates: list[Any]
    loss: float | None


class Plateau(Check):
    rules = (RULE,)
    interval = "in turn"
    spaced = True

    def __init__(self) -> None:
        self._logged: deque[tuple[str, float]] = deque(maxlen=KEPT)
        self._modes: dict[str, str] = {}
        self._followed: list[Followed] | None = None
        self._loss: float | None = None
        """The cross-entropy of the batch at the last look."""
        self._best: dict[int, Best] = {}

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        for name, given in logged.items():
            mode = self._modes.get(name)
            if mode is None:
                mode = self._modes[name] = mode_of(name)
            if type(given) is float or (mode and self._followed):
                number(loop, given, partial(self._keep, name))

    def _keep(self, name: str, value: float) -> None:
        if math.isfinite(value) and value != int(value):  # 0 or 1 is no sign of anything
            self._logged.append((name, value))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._followed is None:
            plateaus = [f for f in loop.attached.schedulers if isinstance(f.scheduler, lr_scheduler.ReduceLROnPlateau)]
            self._followed = [f for f in plateaus if f.drives is not None]
        if not self._followed:
            loop.off(self)
        captured = loop.captured
        if captured is not None and captured.main is not None and (told := captured.readings.get(captured.main)):
            self._loss = told.loss
        for followed in list(self._followed):
            self._judge(loop, moment.step, followed)

    def _judge(self, loop: Loop, step: int, followed: Followed) -> None:
        scheduler = followed.scheduler
        best, mode = getattr(scheduler, "best", None), getattr(scheduler, "mode", "")
        if not isinstance(best, float) or not followed.steps:
            return
        if mode == "max" and best > SHARE and not any(value == best for _, value in self._logged):
            self._unlogged(loop, step, followed, best)
        names = sorted({name for name, value in self._logged if value == best})
        wrong = [name for name in names if self._modes[name] not in (mode, "")]
        if not names or len(wrong) < len(names):  # a number of two names is told by neither
            return
        self._followed = [other for other in self._followed or () if other is not followed]
        kind = "is to fall" if mode == "max" else "is to rise"
        loop.found(
            RULE, f"{followed.name} has mode={mode!r} and is stepped with {wrong[0]}, which {kind}: it lowers the rate while the "
            "run gets better",
            step=step, severity=Severity.WARN, where="mode",
            evidence=f"scheduler.best is {best:.6g}, which was logged as {wrong[0]}; {followed.steps} steps of the scheduler",
        )  # fmt: skip

    def _unlogged(self, loop: Loop, step: int, followed: Followed, best: float) -> None:
        """In mode "max" the first number is the best ever since, is as large as the loss was then, and the loss fell."""
        rates = [group.get("lr") for group in followed.scheduler.optimizer.param_groups]
        seen = self._best.get(id(followed))
        if seen is None or seen.best != best:
            near = self._loss if self._loss is not None and NEAR[0] * best <= self._loss <= NEAR[1] * best else None
            self._best[id(followed)] = Best(best, rates, near)
            return
        if seen.loss is None or self._loss is None or self._loss > FELL * best or not _lower(rates, seen.rates):
            return
        self._followed = [other for other in self._followed or () if other is not followed]
        loop.found(
            RULE, f"{followed.name} has mode='max' and is stepped with what is as large as the loss, {best:.3g}, and was never "
            "larger since: it waits for a loss to rise, and lowers the rate while it falls",
            step=step, severity=Severity.WARN, where="mode",
            evidence=f"scheduler.best is {best:.4g} as at first, the loss was {seen.loss:.3g} then and is {self._loss:.3g}; "
            f"{followed.steps} steps of the scheduler, and the rate fell",
        )  # fmt: skip

    def drop(self) -> None:
        self._logged.clear()
        self._followed = None


def _lower(rates: list[Any], before: list[Any]) -> bool:
    pairs = zip(rates, before, strict=False)
    return any(isinstance(now, float) and isinstance(then, float) and now < then for now, then in pairs)


def mode_of(name: str) -> str:
    """The mode that a logged number is for, by its name: "min" of a loss, "max" of an accuracy, "" of what is not known."""
    words = set(re.findall(r"[a-z]+[0-9]*", name.lower()))
    falls, rises = bool(words & FALLS), bool(words & RISES)
    if falls == rises or words & TURNED:
        return ""
    return "min" if falls else "max"
