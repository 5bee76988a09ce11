"""What was declared of a run: its schedule, its totals, its vocabulary. Every value carries where it was declared.

Steps count optimizer updates; rates are per update; `vocab` is the number of classes of the loss, in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from karat.invariants.run.spec import Suppression

KINDS = ("wsd", "cosine", "linear", "constant")
"""Schedules that can be declared. wsd decays in a straight line unless its decay is declared as a cosine."""


NOT_DECLARED = ("where", "conflicts", "left_out", "suppress")


@dataclass(frozen=True)
class Intent:
    """Declarations of a run; None: not declared. `decay_end` is only there when declared apart from `total_steps`.

    left_out: keys of a Spec that a log cannot be judged by.
    """

    total_steps: int | None = None
    schedule: str | None = None
    decay: str | None = None
    peak: float | None = None
    floor: float | None = None
    warmup: int | None = None
    stable_end: int | None = None
    decay_end: int | None = None
    vocab: int | None = None
    reduction: float | None = None
    restarts: tuple[int, ...] | Literal["any"] = ()
    lr_range: tuple[float, float] | None = None
    suppress: tuple[Suppression, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def declared(self) -> dict[str, object]:
        """The names and values that were declared."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_DECLARED}
        return {name: value for name, value in held.items() if value not in (None, ())}

    def cite(self, name: str) -> str:
        """A declared value and where it was declared, as one phrase."""
        return f"{name} = {getattr(self, name)} ({self.where.get(name, 'declared')})"

    @property
    def end(self) -> int | None:
        """The step at which the decay is declared to end."""
        return self.decay_end if self.decay_end is not None else self.total_steps

    @property
    def decay_start(self) -> int | None:
        """The step at which the declared decay starts: stable_end of wsd, the end of the warm-up of the others."""
        if self.schedule == "wsd":
            return self.stable_end
        return self.warmup if self.schedule in ("cosine", "linear") else None

    @property
    def decays(self) -> bool:
        """Whether a schedule was declared whose rate never rises once it has fallen."""
        return self.schedule in ("wsd", "cosine", "linear")


def merged(intents: tuple[Intent, ...]) -> Intent:
    """The declarations of several sources, the first to declare a value counts; others that differ are kept as conflicts."""
    result = Intent()
    conflicts: list[str] = []
    for intent in intents:
        conflicts += intent.conflicts
        for name, value in intent.declared().items():
            held = getattr(result, name)
            place = intent.where.get(name, "declared")
            if held in (None, ()):
                result = replace(result, **{name: value}, where={**result.where, name: place})  # type: ignore[arg-type]
            elif held != value:
                conflicts.append(f"{name} = {held} ({result.where[name]}) and {value} ({place})")
    left_out = dict.fromkeys(name for intent in intents for name in intent.left_out)
    suppress = tuple(by for intent in intents for by in intent.suppress)
    return replace(result, conflicts=tuple(dict.fromkeys(conflicts)), left_out=tuple(left_out), suppress=suppress)


def impossible(intent: Intent) -> str:
    """Why declarations cannot all be meant; empty when they can."""
    marks = [(n, v) for n in ("warmup", "stable_end", "total_steps") if (v := getattr(intent, n)) is not None]
    for (low, a), (high, b) in itertools.pairwise(marks):
        if a > b:
            return f"{low} = {a} is after {high} = {b}"
    for name in ("total_steps", "peak", "vocab"):
        value = getattr(intent, name)
        if value is not None and not value > 0:
            return f"{name} = {value} is not positive"
    if intent.warmup is not None and intent.warmup < 0:
        return f"warmup = {intent.warmup} is negative"
    if intent.floor is not None and not intent.floor >= 0:
        return f"floor = {intent.floor} is negative"
    if intent.floor is not None and intent.peak is not None and intent.floor > intent.peak:
        return f"floor = {intent.floor} is above peak = {intent.peak}"
    return ""
