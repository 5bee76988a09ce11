"""The schedulers and the loss scaler of a loop, as its caller gave them or as they are found among the living objects.

They are found once, before the first step, and held weakly. To go through all living objects takes about 40 ms, so that is
done when `watch` is imported; from then on the reference counts of the classes, each of which rises by one with each
object made, tell whether there is any to be found, and mostly it is among the youngest.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import lr_scheduler

Scheduler = lr_scheduler.LRScheduler
ROOTS = Scheduler, torch.amp.GradScaler
MOST_PARTS = 64
"""Members of a scheduler that are looked at for schedulers inside it."""


class Followed:
    """A scheduler and how often it was stepped. drives: index of its optimizer among the watched ones, None of another."""

    def __init__(self, scheduler: Any, drives: int | None, given: bool) -> None:
        self._held = weakref.ref(scheduler)
        self.name = type(scheduler).__name__
        self.drives, self.given = drives, given
        self.started = self.seen = steps_of(scheduler)

    @property
    def scheduler(self) -> Any:
        """The scheduler; None once the loop let go of it."""
        return self._held()

    @property
    def steps(self) -> int:
        """How often its step was called since it was found."""
        scheduler = self._held()
        return self.seen - self.started if scheduler is None else steps_of(scheduler) - self.started


def steps_of(scheduler: Any) -> int:
    """How often a scheduler was stepped, by the counts that it and those inside it keep; what has none counts as never."""
    counts = [getattr(scheduler, "last_epoch", 0), getattr(scheduler, "_step_count", 1) - 1]
    inside = [steps_of(part) for part in parts(scheduler)] if hasattr(scheduler, "_schedulers") else []
    return max([int(count) for count in counts if isinstance(count, (int, float))] + inside, default=0)


@dataclass(frozen=True)
class Stranger:
    """A scaler that had scaled before it was found, and so may be another loop's. records, keys: what it knew then."""

    held: weakref.ref[Any]
    records: Any
    keys: set[int]


class Attached:
    """What was found. schedulers: those at the top, not those inside another; scalers: enabled ones, each held weakly."""

    def __init__(self) -> None:
        self.schedulers: list[Followed] = []
        self._scalers: list[weakref.ref[Any]] = []
        self._strangers: list[Stranger] = []

    def add(self, later: Attached) -> None:
        """Takes in the schedulers that were made since; those known keep their counts."""
        known = {id(f.scheduler) for f in self.schedulers}
        self.schedulers += [f for f in later.schedulers if id(f.scheduler) not in known]

    def driving(self, index: int) -> list[Any]:
        """The living schedulers of one optimizer."""
        found = [f.scheduler for f in self.schedulers if f.drives == index]
        return [scheduler for scheduler in found if scheduler is not None]

    @property
    def possible(self) -> list[Any]:
        """The living scalers that were given, or that had not scaled yet when they were found; or with a record of this
        loop's optimizer."""
        return [scaler for held in self._scalers if (scaler := held()) is not None and scaler.is_enabled()]

    @property
    def scalers(self) -> list[Any]:
        """Those of them that scale by now."""
        return [scaler for scaler in self.possible if getattr(scaler, "_scale", None) is not None]

    def meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes in a stranger that has a record of this optimizer which it did not have when it was found: an id alone may
        be that of a dead optimizer."""
        keys = {id(optimizer), id(bare(optimizer))}
        for stranger in list(self._strangers):
            scaler = stranger.held()
            records = {} if scaler is None else scaler._per_optimizer_states
            stale = stranger.keys if records is stranger.records else set()
            if any(key in records for key in keys - stale):
                self._strangers.remove(stranger)
                self._scalers.append(stranger.held)


def find(optimizers: Iterable[torch.optim.Optimizer], scheduler: Any, scaler: Any) -> Attached:
    """The schedulers and scalers given, and those that live."""
    own = [bare(o) for o in optimizers]
    living = every()
    if any("initial_lr" in group for o in own for group in o.param_groups) and not any(
        bare(getattr(s, "optimizer", None)) is o for s in living for o in own
    ):
        living = look_through()  # some scheduler has been there
    given = [inner(s) for s in (scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]) if s is not None]
    found = Attached()
    schedulers = {id(s): s for s in [*given, *(o for o in living if isinstance(o, Scheduler))]}
    nested = {id(part) for s in schedulers.values() for part in parts(s)}
    for s in schedulers.values():
        if id(s) in nested or getattr(s, "optimizer", None) is None:
            continue
        driven = bare(s.optimizer)
        drives = next((k for k, o in enumerate(own) if o is driven), None)
        found.schedulers.append(Followed(s, drives, any(s is g for g in given)))
    scalers = [scaler] if scaler is not None else [o for o in living if isinstance(o, torch.amp.GradScaler)]
    scalers = [s for s in scalers if hasattr(s, "_per_optimizer_states")]
    found._scalers = [weakref.ref(s) for s in scalers if s is scaler or getattr(s, "_scale", None) is None]
    strange = [s for s in scalers if s is not scaler and getattr(s, "_scale", None) is not None]
    found._strangers = [
        Stranger(weakref.ref(s), s._per_optimizer_states, set(s._per_optimizer_states)) for s in strange
    ]
    return found


def every() -> list[Any]:
    """The living schedulers and scalers."""
    counts = _counts()
    if counts.keys() <= _COUNTED.keys():
        known = [o for held in _KNOWN if (o := held()) is not None]
        young = [o for generation in (0, 1) for o in gc.get_objects(generation) if issubclass(type(o), ROOTS)]
        found = {id(o): o for o in (*known, *young)}
        made = [count - _COUNTED[key] for key, count in counts.items()]
        if min(made) >= 0 and len(found) >= sum(made):  # one below zero: a class is named in fewer places than it was
            return [*found.values()]
    return look_through()


def look_through() -> list[Any]:
    """All schedulers and scalers among all objects that live; from now on those made later are counted."""
    living = _living()
    _KNOWN[:] = [weakref.ref(o) for o in living]
    _COUNTED.clear()
    _COUNTED.update(_counts())
    for o in living:
        _COUNTED[id(type(o))] -= 1
    return living


def _living() -> list[Any]:
    classes = {kind for root in ROOTS for kind in subclasses(root)}
    return [o for o in gc.get_referrers(*classes) if type(o) in classes]


def _counts() -> dict[int, int]:
    """Identity of a class -> references to it, but for names in the script that is run. Called where nobody holds more of
    them than at any other call."""
    named = [id(value) for value in vars(sys.modules["__main__"]).values() if isinstance(value, type)]
    kinds = [kind for root in ROOTS for kind in subclasses(root)]
    return {id(kind): sys.getrefcount(kind) - named.count(id(kind)) for kind in kinds}


def scales() -> list[tuple[weakref.ref[Any], float]]:
    """The enabled scalers that live, whoever's they are, each with its scale."""
    living = [o for o in every() if isinstance(o, torch.amp.GradScaler)]
    return [(weakref.ref(s), float(s.get_scale())) for s in living if s.is_enabled()]


def bare(optimizer: Any) -> Any:
    """The optimizer under wrappers that hold it as `.optimizer`."""
    while isinstance(held := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = held
    return optimizer


def inner(scheduler: Any) -> Any:
    """The scheduler under wrappers that hold it as `.scheduler`."""
    while isinstance(held := getattr(scheduler, "scheduler", None), Scheduler):
        scheduler = held
    return scheduler


def parts(scheduler: Any) -> list[Any]:
    """The schedulers that a scheduler holds, as attributes or in lists."""
    held: list[Any] = []
    for value in list(vars(scheduler).values())[:MOST_PARTS]:
        held += value if isinstance(value, (list, tuple)) else [value]
    return [value for value in held if isinstance(value, Scheduler)]


def subclasses(kind: type) -> set[type]:
    """A class and all below it."""
    found = {kind}
    children: list[type] = kind.__subclasses__()
    for child in children:
        found |= subclasses(child)
    return found


_KNOWN: list[weakref.ref[Any]] = []
"""The schedulers and scalers that lived when all objects were last looked through."""
_COUNTED: dict[int, int] = {}
"""`_counts` of their classes then, less one for each of them."""
