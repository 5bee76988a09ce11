"""RUN-33: the share of updates that rounding swallows, of the looks that movement.py takes; and the declared type."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from karat.invariants.run.rule import Severity
from karat.invariants.run.run33_precision import RULE
from karat.invariants.runtime.watching.check import Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.sampling import native

LOW = (torch.bfloat16, torch.float16)
LOOKS = 3
"""Steps that are taken together: as many as are looked at in full at the start."""
ENOUGH = 64
"""Elements with a gradient that are needed for a share."""
NEARLY_ALL, MOST, ALL = 0.95, 0.75, 0.999
AWAY = 0.1
"""Of the highest rate so far: below it a rate that still changes is on its way to zero."""


@dataclass(slots=True)
class Look:
    """One parameter at one step, on a sample. some: elements with a gradient; lost: those of them that did not change."""

    place: int
    name: str
    dtype: torch.dtype
    rate: float | None
    written: bool
    skipped: bool
    counted: bool = False
    update: float = 0.0
    gradient: float = 0.0
    weight: float = 0.0
    some: int = 0
    lost: int = 0


@dataclass(slots=True)
class Share:
    """What was lost at one step, of all parameters of a kind that were looked at."""

    step: int
    rate: float
    some: int
    lost: int
    worst: str


class Rounding:
    """Keeps the last looks of each optimizer, in low precision and in full."""

    def __init__(self) -> None:
        self._shares: dict[tuple[int, bool], deque[Share]] = {}
        self._peak: dict[int, float] = {}
        self._warned: set[tuple[int, bool]] = set()

    def judge(self, loop: Loop, optimizer: torch.optim.Optimizer, index: int, step: int, looks: list[Look]) -> None:
        for low in (True, False):
            seen = [
                k for k in looks if k.counted and k.written and not k.skipped and (k.dtype in LOW) is low and k.rate
            ]
            if seen:
                worst = max(seen, key=lambda k: k.lost / k.some if k.some else 0.0)
                share = Share(step, max(k.rate or 0.0 for k in seen), sum(k.some for k in seen),
                              sum(k.lost for k in seen), worst.name)  # fmt: skip
                self._add(loop, native(optimizer), index, low, share)

    def _add(self, loop: Loop, own: bool, index: int, low: bool, share: Share) -> None:
        kept = self._shares.setdefault((index, low), deque(maxlen=LOOKS))
        kept.append(share)
        peak = self._peak[index] = max(self._peak.get(index, 0.0), share.rate)
        total, lost = sum(s.some for s in kept), sum(s.lost for s in kept)
        steady = kept[0].rate == kept[-1].rate
        if (
            len(kept) < LOOKS
            or total < ENOUGH
            or kept[-1].rate > kept[0].rate
            or (share.rate < AWAY * peak and not steady)
        ):
            return
        fraction = lost / total
        limit = (NEARLY_ALL if own and fraction > NEARLY_ALL else MOST) if low else ALL
        severity = Severity.FAIL if low and own and fraction > NEARLY_ALL else Severity.WARN
        kind = "low-precision" if low else "float32"
        if severity is Severity.WARN and fraction > limit:
            if (index, low) in self._warned:
                return
            self._warned.add((index, low))
        loop.judge(
            RULE, kept[0].step, RULE.margin(fraction, limit),
            lambda: {
                "message": f"{fraction:.0%} of the updates of {kind} parameters are lost in rounding at a rate of "
                f"{share.rate:g}: " + ("there are no master weights" if low else "the rate is below their spacing"),
                "severity": severity, "phase": "after the step", "where": share.worst if severity is Severity.WARN else "",
                "evidence": f"{lost} of {total} sampled elements with a gradient did not change in steps "
                f"{kept[0].step} to {share.step}, most of {share.worst or 'a parameter'}",
            },
        )  # fmt: skip

    def types(self, loop: Loop, moment: Moment) -> None:
        """The declared type of the trainable parameters."""
        declared = loop.spec.dtype
        if declared is None:
            return
        wanted = getattr(torch, declared)
        wrong = [n for n, p in loop.trainable().items() if p.is_floating_point() and p.dtype is not wanted]
        kinds = {str(loop.parameters[n].dtype).removeprefix("torch.") for n in wrong}
        loop.judge(
            RULE, moment.step, RULE.margin(len(wrong), 0),
            lambda: {
                "message": f"{len(wrong)} trainable parameters are {', '.join(sorted(kinds))}, declared is {declared}: "
                f"{some(wrong)}",
                "where": wrong[0], "evidence": "Spec.dtype",
            },
        )  # fmt: skip
