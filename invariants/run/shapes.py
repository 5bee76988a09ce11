"""The schedules that an audit knows, as parameters of the running formulas, and how a log counts its steps.

A log may number the first update 0 or 1, note the rate of the update or of the next one, and warm up from 0 or from
1/warmup. `shift` and `from_zero` are those conventions: they change no formula, only the step that it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from karat.core.formulas import schedule
from karat.invariants.inv08_lr_band import seed_schedule

FAMILIES = (
    "constant",
    "linear",
    "cosine",
    "wsd",
    "wsd, cosine decay",
    "unclamped cosine",
    "wsd, unclamped cosine decay",
)
"""From few parameters to many: of those that fit equally well the first is named."""

CONVENTIONS = ((0, True), (0, False), (-1, False), (-1, True), (1, True))
"""(shift, from_zero): the rate of step s; the same warmed up from 1/warmup; both with s counted from 1; of the next update."""


@dataclass(frozen=True)
class Shape:
    """A schedule with all its parameters. wsd: stable_end > warmup; the others have stable_end = warmup."""

    family: str
    warmup: int
    stable_end: int
    total: int
    peak: float
    floor: float
    shift: int = 0
    from_zero: bool = True

    @property
    def unclamped(self) -> bool:
        """Whether the progress of the decay is not clamped, so that the rate climbs again past `total`."""
        return "unclamped" in self.family

    def rate(self, step: float) -> float:
        """The learning rate that a log with this shape notes at `step`, by the running formulas."""
        at = max(step + self.shift, 0)
        if self.family == "constant" and at >= self.warmup:
            return self.peak
        if at < self.warmup:
            return float(schedule.warmup_ramp(at - 1 if self.from_zero else at, self.warmup, self.peak))
        marks = (self.warmup, self.stable_end, self.total, self.peak, self.floor)
        if self.unclamped:
            return float(seed_schedule(at, *marks))
        if "cosine" not in self.family:
            return float(schedule.wsd(at, *marks))
        if at < self.stable_end:
            return self.peak
        return float(schedule.cosine_decay(at, self.stable_end, self.total, self.peak, self.floor))

    @property
    def text(self) -> str:
        """The schedule in words."""
        parts = [self.family]
        if self.warmup:
            parts.append(f"warm-up {self.warmup}")
        if self.family.startswith("wsd"):
            parts.append(f"plateau to {self.stable_end}")
        if self.family != "constant":
            parts.append(f"total_steps = {self.total}")
        parts.append(f"peak {self.peak:g}" + (f", floor {self.floor:g}" if self.family != "constant" else ""))
        if self.shift:
            parts.append("steps counted from 1" if self.shift < 0 else "the rate of the next update")
        return ", ".join(parts)
