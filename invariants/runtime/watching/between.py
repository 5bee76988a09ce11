"""The steps between two looks: a few numbers are read, and where they are as they should be, that is all of the step.

Such a step reads the rates, and of the anchors of the optimizer (see anchors.py) whether their gradients are fresh, finite
and not zero. Whatever else a check hears between two looks, it says by `Loop.stir`; then, as where any of these numbers is
not as it should be, all checks are asked in full.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from karat.invariants.run.rule import Rule
from karat.invariants.runtime.watching.anchors import Anchor
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.cost import Cost
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.reduction import SMALL

Ended = Callable[[int], None]


class Between:
    """Of one optimizer, in one list of attributes, for each costs something in a step whose memory is cold.

    until: the step at which all checks are asked again; 0: at the next. quiet: whether the step under way is left to this.
    """

    __slots__ = (
        "_able", "_anchors", "_checks", "_cost", "_count", "_duties", "_ended", "_falls", "_loop", "_questions", "_rates",
        "_rules", "place", "quiet", "until",
    )  # fmt: skip

    def __init__(self, loop: Loop, place: int, cost: Cost, ended: Ended) -> None:
        self._loop, self.place, self._cost, self._ended = loop, place, cost, ended
        self.until, self.quiet, self._count = 0, False, 0
        self._checks: Sequence[Check] = ()
        self._able = True
        """Whether all of them can be asked quickly."""
        self._rules: tuple[Rule, ...] = ()
        self._duties = 0
        self._anchors: tuple[tuple[Anchor, bool], ...] = ()
        """Each, and whether the square of its gradient's norm is one product."""
        self._questions: tuple[Callable[[Loop, int, int], bool], ...] = ()
        self._falls: tuple[Callable[[Loop, int, int, list[float]], bool], ...] = ()
        self._rates: list[float] = []

    def prepare(self, checks: Sequence[Check], until: int) -> None:
        """Before the first of such steps. checks: those that would be asked in them, in one list until they are others."""
        self.tell()
        loop = self._loop
        anchors = loop.anchors.get(self.place, ())
        rates: list[Any] = [group.get("lr") for group in loop.optimizers[self.place].param_groups]
        if checks is not self._checks:
            self._choose(checks)
        if not self._able or not anchors or not all(type(rate) is float and rate for rate in rates):
            return  # rates that are tensors change in place, and a rate of 0 is counted
        self._anchors = tuple((anchor, short(anchor.parameter)) for anchor in anchors)
        self._rates, self.until, self._duties = rates, until, loop.duties

    def _choose(self, checks: Sequence[Check]) -> None:
        """What is asked of checks, and what is judged for them."""
        self._checks = checks
        every, of_rates = [c for c in checks if not c.of_rates], [c for c in checks if c.of_rates]
        asked = [c for c in every if not c.heard]
        self._able = all(type(c).quick is not Check.quick for c in asked)
        self._questions = tuple(c.quick for c in asked)
        self._rules = tuple(rule for c in every for rule in c.heard_rules)
        falls = all(type(c).quick_rates is not Check.quick_rates for c in of_rates)
        self._falls = tuple(c.quick_rates for c in of_rates) if falls else ()

    def tell(self) -> None:
        """Counts what was judged in such steps."""
        for rule in self._rules:
            self._loop.tallies[rule.id].checks += self._count
        self._count = 0

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> bool:
        """Before a step: whether nothing more is to be asked."""
        self.quiet = False  # where the last step raised
        loop, place = self._loop, self.place
        step = loop.taken[place]
        if step >= self.until or len(args) != 1 or kwargs or loop.captured is not None:
            return False
        timed = self._cost.timed
        began = time.thread_time() if timed else 0.0
        last = self._rates
        groups = optimizer.param_groups
        if len(groups) != len(last):
            return False
        for k, group in enumerate(groups):
            if group["lr"] != last[k]:
                if not self._fall([g["lr"] for g in groups], step):
                    return False
                break
        dot = torch.dot
        for anchor, squared in self._anchors:
            gradient = anchor.parameter.grad
            if anchor.measured or gradient is None:
                return False
            if (anchor.backwards != 1 or not anchor.cleared) and not self._accumulated(anchor):
                return False
            if squared:
                numbers = gradient.reshape(-1)
                size = dot(numbers, numbers).item()
            else:
                size = norm_of(gradient)
            if not 0 < size < math.inf or not anchor.parameter.requires_grad:
                return False
            anchor.applied = id(gradient), math.sqrt(size) if squared else size, gradient._version
        for ask in self._questions:
            if not ask(loop, place, step):
                return False
        self.quiet = True
        if timed:
            self._cost.add(time.thread_time() - began)
        return True

    def _accumulated(self, anchor: Anchor) -> bool:
        """Whether as many gradients were added as there were forwards, onto none, or onto what was set to zero."""
        loop, count = self._loop, anchor.backwards
        if count != 1 and (not count or count != loop.so_far.count - loop.forwards_at[self.place]):
            return False
        return anchor.cleared or bool(anchor.left and anchor.left[0].item() == 0)

    def _fall(self, rates: list[float], step: int) -> bool:
        """Whether rates that changed did so as every check of them expects."""
        if not self._falls or not all(type(rate) is float for rate in rates):
            return False
        for ask in self._falls:
            if not ask(self._loop, self.place, step, rates):
                return False
        self._rates = rates
        return True

    def after(self) -> None:
        """After such a step."""
        self.quiet = False
        self._count += 1
        for anchor, _ in self._anchors:
            if anchor.left:
                anchor.left, anchor.repeats = [], []
            anchor.backwards, anchor.cleared, anchor.calls = 0, False, 0
        loop, place = self._loop, self.place
        so_far, step = loop.so_far, loop.taken[place] + 1
        so_far.call = None
        if step >= self.until or step != loop.step + 1 or loop.duties != self._duties:
            self._ended(place)
            return
        so_far.untold = 0
        loop.taken[place] = loop.step = step
        loop.forwards_at[place] = loop.applied = so_far.count
        loop.ended = time.perf_counter()
        self._cost.turn_between()


def short(parameter: Tensor) -> bool:
    """Whether the norm of a parameter's gradient is had by one product, the fastest that there is."""
    return parameter.numel() <= SMALL and parameter.dtype is torch.float32


def norm_of(gradient: Tensor) -> float:
    """The norm of a gradient; of one that is large, of its first numbers."""
    return float(torch.linalg.vector_norm(gradient if gradient.numel() <= SMALL else gradient.flatten()[:SMALL]))
