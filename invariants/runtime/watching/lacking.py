"""Parameters that came to the model while it was watched, and that a copy of it does not have."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import named_parameters


class Lacking:
    """What copies lacked at the start is meant; what they lack later, one step after the model got it, is found once."""

    def __init__(self) -> None:
        self._read = 0
        self._meant: set[str] = set()
        self._pending = False
        self.since = 0
        """The step at which the model first had it."""

    def begin(self, loop: Loop, copies: Iterable[nn.Module]) -> None:
        """At the start."""
        self._read, self._meant = loop.renamed, set(_without(loop, copies))

    def due(self, loop: Loop) -> bool:
        """Whether the model was read anew since, or something is missing for a step."""
        return self._pending or self._read != loop.renamed

    def now(self, loop: Loop, copies: Iterable[nn.Module], step: int) -> list[str]:
        """What has been missing for a step; empty at the first look, for a copy may get it after the step."""
        self._read = loop.renamed
        missing = [name for name in _without(loop, copies) if name not in self._meant]
        if not missing:
            self._pending = False
        elif not self._pending:
            self._pending, self.since = True, step
        else:
            self._pending = False
            self._meant.update(missing)
            return missing
        return []


def _without(loop: Loop, copies: Iterable[nn.Module]) -> list[str]:
    """Trainable parameters of which some copy has none whose name ends the same."""
    tables = [named_parameters(copy) for copy in copies]
    return [
        name for name in loop.trainable()
        if not all(any(name == own or name.endswith("." + own) for own in _ends(name, table)) for table in tables)
    ]  # fmt: skip


def _ends(name: str, table: dict[str, nn.Parameter]) -> list[str]:
    """The names in a table that are the name, or what is left of it without its first parts."""
    parts = name.split(".")
    return [end for k in range(len(parts)) if (end := ".".join(parts[k:])) in table]
