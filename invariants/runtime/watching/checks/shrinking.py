"""RUN-18: all weights lose the same share at each step, many times what rate and weight decay come to."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run18_weight_decay import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.naming import plain

LEAST_SHARE = 0.02
"""Of a weight, in one step; with the usual rates a decay takes a thousandth at most."""
ALIKE = 0.2
"""How far the shares of the parameters are apart, at most, as a part of their mean."""
BEYOND = 4.0
"""How many times what rate and decay come to."""
LEAST_PARAMETERS, MOST_PARAMETERS, SAMPLE = 3, 8, 4096
LEAST_NUMBERS = 64
KEYS = ("weight_decay", "wd", "decay", "l2")


class Shrinking(Check):
    rules = (RULE,)
    interval = "first steps"
    spaced = True

    def __init__(self) -> None:
        self._before: dict[int, list[Tensor]] = {}
        self._places: dict[int, list[int]] = {}
        self._shares: dict[int, list[float]] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first >= DENSE:
            loop.off(self)
            return
        if moment.closure:
            return
        fit = [
            i for i, h in enumerate(moment.held)
            if h.parameter.ndim > 1 and h.parameter.is_floating_point() and h.parameter.numel() >= LEAST_NUMBERS
            and h.parameter.grad is not None and plain(h.parameter)
        ]  # fmt: skip
        self._places[moment.index] = fit[:MOST_PARAMETERS]
        self._before[moment.index] = [_sample(moment.held[i].parameter) for i in fit[:MOST_PARAMETERS]]

    def after_step(self, loop: Loop, moment: Moment) -> None:
        before, places = self._before.pop(moment.index, []), self._places.pop(moment.index, [])
        shares = [
            _share(old, _sample(moment.held[i].parameter)) for old, i in zip(before, places, strict=True)
            if bool(old.any())
        ]  # fmt: skip
        mean = sum(shares) / max(len(shares), 1)
        if len(shares) < LEAST_PARAMETERS or mean < LEAST_SHARE or max(shares) - min(shares) > ALIKE * mean:
            self._shares[moment.index] = []
            return
        seen = self._shares.setdefault(moment.index, [])
        seen.append(mean)
        group = moment.optimizer.param_groups[0]
        given = next((float(group[key]) for key in KEYS if isinstance(group.get(key), (int, float))), 0.0)
        meant = given * moment.rates[0] if moment.rates else 0.0
        if len(seen) == DENSE and max(seen) - min(seen) <= ALIKE * mean and not BEYOND * meant >= mean:
            self._say(loop, moment.step, mean, given, meant)

    def _say(self, loop: Loop, step: int, share: float, given: float, meant: float) -> None:
        why = (
            f": that is the decay {given:g} itself, not times the rate" if abs(share - given) < ALIKE * given
            else f", where rate and decay come to {100 * meant:.2g}%"
        )  # fmt: skip
        loop.judge(
            RULE, step, RULE.margin(1.0, 0.0),
            partial(
                dict, message=f"each step takes {100 * share:.3g}% of every weight{why}", where="shrinking",
                severity=Severity.WARN, evidence=f"in {DENSE} steps, on samples of the matrices, all alike",
            ),
        )  # fmt: skip

    def drop(self) -> None:
        self._before, self._places = {}, {}


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)].double()


def _share(old: Tensor, new: Tensor) -> float:
    """What is lost of the old numbers in the new ones: 0 where these have them whole."""
    return float(1 - torch.dot(old, new) / torch.dot(old, old))
