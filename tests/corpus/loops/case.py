"""The record of one loop: what is wrong with it, from which step on, and which rules name the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Attach = Callable[..., Any]
"""As `watch`: attach(model, optimizer, **declared) -> guards, a context manager with `log`; or something in its place."""


@dataclass(frozen=True)
class Case:
    """A loop that can be run with its bug and without.

    run(attach, buggy): builds everything from fixed seeds, attaches, trains for at most a few dozen steps on the CPU in
    well under a second, and returns. rules: slugs that name the right cause, any of them. first_effect: the optimizer
    step, counted from 0, at which the bug first changes what happens; None for what shows at the end. source: where such
    a bug was reported. needs: what the loop declares, in words; empty when it is `watch(model, optimizer)` alone.
    """

    name: str
    about: str
    rules: frozenset[str]
    first_effect: int | None
    run: Callable[[Attach, bool], None]
    source: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Clean:
    """A legitimate loop that looks odd: run(attach) must set off no FAIL."""

    name: str
    about: str
    run: Callable[[Attach], None]
