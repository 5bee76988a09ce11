"""Reads the learning rates of a step for all checks, finds schedulers and scalers, and judges RUN-6 and RUN-7.

RUN-6: each rate is finite, not negative, in its declared range; not all are zero for long. RUN-7: all groups follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run06_lr_range import RULE as RANGE
from karat.invariants.run.run07_lr_groups import RULE as GROUPS
from karat.invariants.runtime.watching.attached import find
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

AGREE = 1e-6
"""Rates that differ by less than this share are equal: float32 holds 7 digits."""
ROUNDING = 1e-12
"""A rate below zero by less than this share of the largest one is a rounding of zero."""
IDLE_AT_START, IDLE_LATER = 2, 5
"""Updates in a row at rate 0 that are reported."""
MOVES, MOVES_APART, SETTLED = 2, 10, 5
"""Moves of one group after which another that stayed is reported, where both began at one rate and where not; steps for
which ratios must have held to be levelled."""


@dataclass
class Past:
    """What the rates of one optimizer did so far. moves: of each group; ratios: to the first, as they were last."""

    rates: tuple[float, ...] = ()
    first: tuple[float, ...] = ()
    moves: tuple[int, ...] = ()
    largest: float = 0.0
    idle: int = 0
    kept: int = 0
    ratios: tuple[float, ...] = ()
    worst: float = math.inf


class Rates(Check):
    """Fills `moment.rates` and `loop.attached` before any other check is asked."""

    rules = (RANGE, GROUPS)
    of_rates = True

    def __init__(self) -> None:
        self._looked = False
        self._past: dict[int, Past] = {}
        self._began: dict[int, list[float]] = {}

    def start(self, loop: Loop) -> None:
        for index, optimizer in enumerate(loop.optimizers):
            self._began[index] = [_number(group.get("lr")) for group in optimizer.param_groups]

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._looked:
            self._find(loop)
        loop.rest(self, "forward")

    def quick_rates(self, loop: Loop, place: int, step: int, rates: list[float]) -> bool:
        past = self._past.get(place)
        if past is None or loop.spec.lr_range is not None or past.worst < 0 or loop.spec.group_ratios:
            return False
        low, high, before = min(rates), max(rates), past.rates
        if not 0 < low <= high <= past.largest or len(before) != len(rates):
            return False
        if low == high:
            return len(rates) == 1 or min(before) == max(before)
        if any(rate > last or _same(rate, last) for rate, last in zip(rates, before, strict=True)):
            return False
        past.moves = tuple([moved + 1 for moved in past.moves])  # each fell, and to rates that are not one
        self._note(past, tuple(rates))
        past.rates = tuple(rates)
        return True

    def look(self, loop: Loop, moment: Moment) -> None:
        if not self._looked:
            self._find(loop)
        given = [group.get("lr") for group in moment.optimizer.param_groups]
        moment.rates = tuple([rate if type(rate) is float else _number(rate) for rate in given])
        tensors = [k for k, rate in enumerate(given) if isinstance(rate, Tensor)]
        if tensors:
            asked = [rate.detach().reshape(()) for rate in given if isinstance(rate, Tensor)]
            loop.transfer.ask(asked, partial(_filled, moment, tensors))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        past = self._past.get(moment.index)
        if past is None:
            past = self._past[moment.index] = Past()
        rates = moment.rates
        if rates == past.rates and past.worst >= 0:
            loop.held_for(RANGE, moment.step, past.worst)
        else:
            self._in_range(loop, moment, past)
        self._idle(loop, moment, past)
        if len(rates) > 1:
            self._groups(loop, moment, past)
        past.rates = rates

    def _find(self, loop: Loop) -> None:
        self._looked = True
        loop.attached = find(loop.optimizers, loop.scheduler, loop.scaler)

    def _in_range(self, loop: Loop, moment: Moment, past: Past) -> None:
        rates = moment.rates
        if not all(r == r for r in rates):  # NaN: a group without a rate, or one whose rate is none
            groups = moment.optimizer.param_groups
            rates = tuple([r for r, group in zip(rates, groups, strict=True) if group.get("lr") is not None])
        past.worst = math.inf
        if not rates:
            return
        numbers = [r for r in rates if r == r]
        smallest, largest = min(numbers, default=math.nan), max(numbers, default=math.nan)
        past.largest = max(past.largest, largest) if largest < math.inf else past.largest
        low, high = loop.spec.lr_range or (0.0, math.inf)
        bottom = low - max(ROUNDING * past.largest, AGREE * low)
        top = high * (1 + AGREE) if high < math.inf else 2 * abs(largest) + 1.0
        ends = (smallest, largest) if smallest < largest else (largest,)
        for rate in ends if len(numbers) == len(rates) else (*ends, math.nan):
            margin = RANGE.margin(rate, bottom, top)
            past.worst = min(past.worst, margin) if math.isfinite(margin) else -1.0
            if not (0 <= margin < math.inf):
                loop.judge(RANGE, moment.step, margin, partial(_out_of_range, loop, moment, rate, low, high))
        if past.worst >= 0:
            loop.held_for(RANGE, moment.step, past.worst)

    def _idle(self, loop: Loop, moment: Moment, past: Past) -> None:
        if any(moment.rates) or not moment.rates:
            past.idle = 0
            return
        past.idle += 1
        allowed = IDLE_LATER if past.largest > 0 else IDLE_AT_START
        if past.idle == allowed and not self._idle_is_declared(loop, moment):
            since = moment.step - allowed + 1
            loop.found(
                RANGE, f"the learning rate is 0 in all groups since step {since}: the updates change nothing",
                step=moment.step, where="zero", severity=Severity.WARN,
                evidence=f"{allowed} updates in a row at rate 0" + ("" if past.largest else ", none before at another"),
            )  # fmt: skip

    def _idle_is_declared(self, loop: Loop, moment: Moment) -> bool:
        return loop.spec.schedule is not None and moment.index == 0  # lr-schedule judges each rate

    # -- groups -------------------------------------------------------------------------------------------------------

    def _groups(self, loop: Loop, moment: Moment, past: Past) -> None:
        rates, spec = moment.rates, loop.spec
        if len(rates) != len(past.rates):
            past.first, past.moves, past.kept, past.ratios = rates, (0,) * len(rates), 0, ()
        elif rates == past.rates:
            past.kept += 1
            loop.held_for(GROUPS, moment.step)
            return
        else:
            pairs = zip(past.moves, rates, past.rates, strict=True)
            past.moves = tuple([moved + (not _same(a, b)) for moved, a, b in pairs])
        if spec.group_ratios and moment.index == 0:
            self._declared(loop, moment, spec.group_ratios, Severity.FAIL)
        elif not self._stays(loop, moment, past) and not self._levelled(loop, moment, past):
            loop.held_for(GROUPS, moment.step)
        if min(rates) < max(rates):
            self._note(past, rates)
        else:
            past.kept = 0

    def _note(self, past: Past, rates: tuple[float, ...]) -> None:
        """For how many steps the ratios of the groups have held."""
        ratios = tuple([rate / rates[0] if rates[0] else math.nan for rate in rates])
        steady = len(ratios) == len(past.ratios) and all(_same(a, b) for a, b in zip(ratios, past.ratios, strict=True))
        past.kept, past.ratios = past.kept + 1 if steady else 0, ratios

    def _declared(self, loop: Loop, moment: Moment, ratios: tuple[float, ...], severity: Severity) -> None:
        rates = moment.rates
        if len(ratios) != len(rates):
            loop.found(
                GROUPS, f"the optimizer has {len(rates)} parameter groups, and {len(ratios)} ratios are declared",
                step=moment.step, severity=severity, where="count",
            )  # fmt: skip
            return
        of = next((k for k, ratio in enumerate(ratios) if ratio > 0), None)
        if of is None:
            return
        unit = rates[of] / ratios[of]
        for place, ratio in enumerate(ratios):
            expected = unit * ratio
            margin = GROUPS.margin(rates[place], expected, AGREE * max(abs(expected), abs(unit)))
            loop.judge(
                GROUPS, moment.step, margin,
                lambda place=place, ratio=ratio: {  # type: ignore[misc]
                    "message": f"the rate of group {place} is {rates[place]:.6g}, "
                    f"{rates[place] / unit if unit else math.nan:.4g} times the schedule's, and {ratio:g} is declared"
                    + (": all groups have one rate" if len(set(rates)) == 1 else ""),
                    "where": f"group {place}", "evidence": f"rates {_shown(rates)}; group_ratios = {ratios}",
                },
            )  # fmt: skip

    def _alike(self, moment: Moment, place: int) -> bool:
        """Whether a group began at the rate of the first: by the rates when the guards were attached, or as noted there."""
        groups, began = moment.optimizer.param_groups, self._began.get(moment.index, [])
        first, other = (groups[k].get("initial_lr") for k in (0, place))
        if isinstance(first, float) and isinstance(other, float):
            return _same(first, other)
        return len(began) == len(groups) and _same(began[0], began[place])

    def _stays(self, loop: Loop, moment: Moment, past: Past) -> bool:
        """A group that never moved while the first did, in a loop that sets the rates itself or declares a schedule."""
        declared = loop.spec.schedule is not None and moment.index == 0
        if loop.attached.driving(moment.index):
            return False
        if past.moves[0] < (1 if declared else MOVES):
            return self._first_stays(loop, moment, past)
        stays = [
            k for k, moved in enumerate(past.moves)
            if not moved and moment.rates[k] > 0 and (
                declared or past.moves[0] >= MOVES_APART or _same(past.first[k], past.first[0]) or self._alike(moment, k)
            )
        ]  # fmt: skip
        if not stays:
            return False
        loop.found(
            GROUPS, f"the rate of group {stays[0]} stays at {moment.rates[stays[0]]:.6g} while that of group 0 moves: "
            "the schedule sets the first group only",
            step=moment.step, where=f"group {stays[0]}", severity=Severity.FAIL if declared else Severity.WARN,
            evidence=f"rates {_shown(moment.rates)}; group 0 moved {past.moves[0]} times",
        )  # fmt: skip
        return True

    def _first_stays(self, loop: Loop, moment: Moment, past: Past) -> bool:
        """The first group alone never moved, in a loop that sets the rates itself."""
        if past.moves[0] or min(past.moves[1:]) < MOVES_APART or not moment.rates[0]:
            return False
        loop.found(
            GROUPS, f"the rate of group 0 stays at {moment.rates[0]:.6g} while all others move: the schedule leaves it out",
            step=moment.step, where="group 0", severity=Severity.WARN,
            evidence=f"rates {_shown(moment.rates)}; the others moved {min(past.moves[1:])} times",
        )  # fmt: skip
        return True

    def _levelled(self, loop: Loop, moment: Moment, past: Past) -> bool:
        """Groups whose ratios held for some steps and that now have one rate at once."""
        rates, before = moment.rates, past.rates
        if past.kept < SETTLED or len(before) != len(rates) or not all(rates) or not all(before):
            return False
        if len(set(rates)) > 1 or len(set(before)) == 1:
            return False
        loop.found(
            GROUPS, f"all {len(rates)} groups have the rate {rates[0]:.6g} at once: their ratios are lost",
            step=moment.step, where="ratios", severity=Severity.WARN,
            evidence=f"rates before {_shown(before)}, in one ratio for {past.kept} steps",
        )  # fmt: skip
        return True

    def drop(self) -> None:
        self._past = {}


def _number(rate: Any) -> float:
    return float(rate) if isinstance(rate, (int, float, np.number)) else math.nan


def _filled(moment: Moment, places: list[int], numbers: list[float]) -> None:
    rates = list(moment.rates)
    for place, number in zip(places, numbers, strict=True):
        rates[place] = number
    moment.rates = tuple(rates)


def _same(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= AGREE * max(abs(a), abs(b))


def _shown(rates: tuple[float, ...]) -> str:
    listed = ", ".join(f"{rate:.4g}" for rate in rates[:6])
    return listed + (f" and {len(rates) - 6} more" if len(rates) > 6 else "")


def _out_of_range(loop: Loop, moment: Moment, rate: float, low: float, high: float) -> dict[str, Any]:
    place = next((k for k, r in enumerate(moment.rates) if r == rate or (r != r and rate != rate)), 0)
    group = f"the learning rate of group {place}" if len(moment.rates) > 1 else "the learning rate"
    if not math.isfinite(rate):
        why = f"{group} is {rate}"
    elif rate < 0:
        why = f"{group} is {rate:.6g}, below zero: the loss is climbed, the decay goes on past its end"
    elif rate > high:
        why = f"{group} is {rate:.6g}, above the declared {high:g}"
    else:
        why = f"{group} is {rate:.6g}, below the declared {low:g}"
    declared = f"lr_range = {loop.spec.lr_range}" if loop.spec.lr_range else "no range is declared"
    return {"message": why, "where": f"group {place}", "evidence": f"rates {_shown(moment.rates)}; {declared}"}
