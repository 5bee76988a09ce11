"""RUN-16: what is written to parameters between two steps by something else than the optimizer, told from what a loop means.

A bound on a norm multiplies a parameter, and pruning makes zeros of some of it. Slow weights, or a restart towards zero,
leave one that is like what it was, and a loop that means them does so again: that is waited for. A parameter that is
another one is said at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE as MOVES
from karat.invariants.runtime.watching.followed import Followed
from karat.invariants.runtime.watching.loop import Loop

JUMP = 0.05
"""The share of a parameter's norm from which a change counts as one."""
SCALED, RELATED = 0.9999, 0.5
"""Cosine of what a parameter was to what it is: beyond the one it was multiplied, below the other it is a new one."""
LEAST_WAIT, LATEST = 24, 2000
"""Steps in which a loop may do again what it did to a parameter; and up to which step that is waited for."""


@dataclass(frozen=True)
class Pending:
    """What was written to at a step; `say` is None once it is known to be meant, or was said."""

    step: int
    say: Callable[[], None] | None
    places: frozenset[int]


def _codes(loop: Loop, name: str) -> bool:
    """Whether a parameter is a table of codes, of which some rows may be started again."""
    owner = dict(loop.model.named_modules()).get(name.rpartition(".")[0])
    return isinstance(owner, nn.Embedding) or "code" in name


class Written:
    """What was written to the parameters of each optimizer, and is not said yet."""

    def __init__(self) -> None:
        self.waiting: dict[int, Pending] = {}

    def again(self, followed: Followed, step: int, touched: list[int]) -> None:
        """Takes what was written to: what is for the second time is what the loop does."""
        pending = self.waiting.get(id(followed))
        if pending is not None and pending.step < step and not pending.places.isdisjoint(touched):
            self.waiting[id(followed)] = Pending(step, None, pending.places.union(touched))
            followed.usual.update(pending.places)

    def judge(
        self, loop: Loop, followed: Followed, step: int, fresh: list[int], looked: range, kept: range, ends: Tensor
    ) -> None:
        """ends: elements of the parameters at the `kept` places of those `looked` at, one after the other, as they were."""
        places = followed.places
        seen = {places[looked[k]] for k in kept}
        followed.usual.update(p for p in fresh if p in seen)
        changed, like, start = [], 1.0, 0
        for n in (looked[k] for k in kept):
            now = followed.few[places[n]]
            old, start = ends[start : start + len(now)], start + len(now)
            distance, scale = float(torch.linalg.vector_norm(now - old)), float(torch.linalg.vector_norm(old))
            masked = bool(((now == old) | (now == 0)).all() & (now == old).any())  # pruned
            if places[n] in fresh and distance > JUMP * scale and scale > 0 and not masked:
                changed.append((followed.held[places[n]].name, distance / scale))
                like = min(like, float(cosine_similarity(now.float(), old.float(), 0)))
        if not changed or like > SCALED:
            return
        name, share = max(changed, key=lambda c: c[1])
        say = partial(
            loop.found, MOVES, step=step, severity=Severity.WARN, where=name, margin=-1.0,
            message=f"{name or 'a parameter'} was changed by {share:.3g} of its norm after step {step - 1} and before "
            f"step {step}, by something else than the optimizer: initialised again, loaded, or not restored",
            evidence=f"{len(changed)} parameters were written to: {', '.join(n for n, _ in changed[:4])}",
        )  # fmt: skip
        codes = all(_codes(loop, name) for name, _ in changed)  # which are placed on samples when nobody uses them
        if (like < RELATED and not codes) or step > LATEST:
            say()
        elif id(followed) not in self.waiting:
            self.waiting[id(followed)] = Pending(step, say, frozenset(fresh))

    def say(self, step: float = math.inf) -> None:
        """Says what was not repeated by a step."""
        for key, pending in self.waiting.items():
            if pending.say is not None and step - pending.step > max(LEAST_WAIT, 2 * pending.step):
                pending.say()
                self.waiting[key] = Pending(pending.step, None, pending.places)

    def drop(self) -> None:
        """Forgets all."""
        self.waiting = {}
