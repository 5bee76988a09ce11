"""RUN-7 and RUN-8 of what comes later: a group that joins with the rate of the start, and parameters that are to be trained from
some step on and get no gradient."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run07_lr_groups import RULE as GROUPS
from karat.invariants.run.run08_gradient_reach import RULE as REACH
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.loop import DENSE, Held, Loop

APART = 5.0
"""How many times the rate of all others that of a group is which joins them."""
HALF = 0.5
"""Times what it was, at most, after a milestone."""
LOOKS = 4
"""Looks after the first, at each of which a parameter has no gradient."""


class Joined(Check):
    rules = (GROUPS, REACH)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self._first: dict[int, list[float]] = {}
        self._lowered: dict[int, list[list[float]]] = {}
        """The rates, each time that they were others."""
        self._asleep: dict[int, set[int]] = {}
        """Of each optimizer the parameters that were not to be trained at the last look."""
        self._waits: dict[int, dict[int, tuple[int, int]]] = {}
        """Those that are from some step on: that step, and how many looks found no gradient since."""

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.closure:
            return
        self._rates(loop, moment)
        self._reached(loop, moment)

    def _rates(self, loop: Loop, moment: Moment) -> None:
        optimizer, index = moment.optimizer, moment.index
        given = optimizer.defaults.get("lr")
        rates = [rate for group in optimizer.param_groups if isinstance(rate := group.get("lr"), float) and rate >= 0]
        before = self._groups.get(index)
        self._groups[index] = len(rates)
        if len(rates) != len(optimizer.param_groups):
            return
        first = self._first.setdefault(index, list(rates))
        first.extend(rates[len(first) :])
        self._left_behind(loop, moment, rates)
        if before is None or not 0 < before < len(rates):
            return
        old, new = max(rates[:before]), rates[before:]
        fell = 0 < old * APART < max(first[:before])
        for place, rate in enumerate(new, before):
            if fell and rate == given and rate > APART * old:
                loop.judge(
                    GROUPS, moment.step, GROUPS.margin(rate, old, 1e-5),
                    partial(
                        dict, message=f"group {place} joins with the rate that the optimizer was made with, {rate:.4g}, where "
                        f"the others have come down to {old:.4g}: add_param_group was given no lr",
                        where=f"group {place}", severity=Severity.WARN,
                        evidence=f"the rates of the others began at {max(first[:before]):.4g}",
                    ),
                )  # fmt: skip

    def _left_behind(self, loop: Loop, moment: Moment, rates: list[float]) -> None:
        """A first group that was lowered twice by one factor, in a loop that sets the rates itself, and others that stay."""
        index = moment.index
        seen = self._lowered.setdefault(index, [rates])
        if len(seen[-1]) != len(rates) or len(rates) < 2:
            self._lowered[index] = [rates]
            return
        if rates == seen[-1]:
            return
        seen.append(rates)
        if len(seen) != 3 or loop.attached.driving(index) or loop.tallies[GROUPS.id].violations:
            return
        factors = [b[0] / a[0] if a[0] else 1.0 for a, b in pairwise(seen)]
        stays = [k for k in range(1, len(rates)) if rates[k] and all(row[k] == rates[k] for row in seen)]
        if stays and max(factors) <= HALF and abs(factors[0] - factors[1]) < 1e-6:
            loop.judge(
                GROUPS, moment.step, GROUPS.margin(rates[stays[0]], first_ratio(seen, stays[0]) * rates[0], 1e-5),
                partial(
                    dict, message=f"the rate of group 0 was divided by {1 / factors[0]:.3g} twice, and that of group "
                    f"{stays[0]} stays at {rates[stays[0]]:.4g}: the milestones set the first group only",
                    where=f"group {stays[0]}", severity=Severity.WARN, evidence="no scheduler drives this optimizer",
                ),
            )  # fmt: skip

    def _reached(self, loop: Loop, moment: Moment) -> None:
        index, held = moment.index, moment.held
        wanted = {id(h.parameter) for h in held if h.parameter.requires_grad}
        asleep = {id(p) for p in loop.parameters.values()} - wanted
        before, self._asleep[index] = self._asleep.get(index), asleep
        waits = self._waits.setdefault(index, {})
        if before is not None and moment.step - loop.first >= DENSE:
            waits.update(dict.fromkeys(before & wanted, (moment.step, 0)))
        if not waits:
            return
        missing = {id(h.parameter) for h in held if h.parameter.grad is None}
        named: dict[str, Held] = {h.name: h for h in held if h.name and id(h.parameter) in waits}
        self._waits[index] = {
            key: (step, count + 1) for key, (step, count) in waits.items() if key in missing and key in wanted
        }  # fmt: skip
        late = {
            name: h.parameter for name, h in named.items()
            if self._waits[index].get(id(h.parameter), (0, 0))[1] > LOOKS
            and not covered(name, loop.spec.frozen) and not covered(name, loop.spec.detached)
        }  # fmt: skip
        if late and len(late) == len(self._waits[index]):
            self._say(loop, moment, late)

    def _say(self, loop: Loop, moment: Moment, late: dict[str, torch.Tensor]) -> None:
        names = list(loop.parameters)
        since = min(step for step, _ in self._waits[moment.index].values())
        self._waits[moment.index] = {}

        def found() -> dict[str, Any]:
            return {
                "message": f"{spoken(late, names)} to be trained since step {since}, and no gradient has come since: the forward "
                "runs it under no_grad, cuts it off, or leaves it out",
                "where": next(iter(groups(late, names)), ""), "severity": Severity.WARN,
                "evidence": f"{len(late)} parameters have requires_grad and a group, and no gradient at {LOOKS + 1} looks",
            }  # fmt: skip

        loop.judge(REACH, moment.step, REACH.margin(len(late), 0), found)

    def drop(self) -> None:
        self._asleep, self._waits = {}, {}


def first_ratio(seen: list[list[float]], place: int) -> float:
    """The ratio that a group began with."""
    return seen[0][place] / seen[0][0]
