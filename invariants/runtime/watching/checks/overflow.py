"""RUN-35: numbers in low precision stay away from both ends of its range.

Inputs and outputs are looked at in every forward in float16; parameters and gradients in the first steps and every K.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.run35_overflow import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.captured import autocast_now, autocast_on
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.sampling import fit, largest, spread

SHARE = 0.125
"""Of the largest number of a type, from which on it is said."""
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24
"""Of float16: below the first digits are lost, below the second everything."""
BELOW = 0.5
"""Share of the gradients that are not zero below the smallest normal number, from which on it is said."""
HUGE = 1e30
"""A parameter in float32 beyond this is on its way out of the range."""
TENSORS = 4
"""Inputs and outputs of a forward that are looked at."""


class Overflow(Check):
    rules = (RULE,)
    spaced = True
    interval = "every forward in float16; parameters and gradients in the first steps and every K"

    def __init__(self) -> None:
        self._seen: list[tuple[str, float, float]] = []
        self._half = False
        self._below: dict[int, list[float]] = {}

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        plain = isinstance(output, Tensor)
        half = plain and output.dtype is torch.float16
        if plain and not half and not autocast_on():
            return
        if not half and (torch.float16 not in [dtype for _, dtype in autocast_now()]):
            return
        if not self._half:
            self._half = True
            self.spaced = False
            loop.duties += 1
        if not torch.is_grad_enabled():
            return
        end = torch.finfo(torch.float16).max
        tensors = [("the input", t) for _, t in leaves((args, kwargs)) if t.is_floating_point() and t.numel()][:TENSORS]
        tensors += [("the output", t) for _, t in leaves(output) if t.dtype is torch.float16 and t.numel()][:TENSORS]
        if tensors and len({t.device for _, t in tensors}) == 1:
            # the largest, not the largest magnitude: masks are large and negative
            highest = [t.detach().amax().float() for _, t in tensors]
            loop.transfer.ask(highest, partial(self._reached, [name for name, _ in tensors], end))

    def _reached(self, names: list[str], end: float, numbers: list[float]) -> None:
        self._seen += [(name, number, end) for name, number in zip(names, numbers, strict=True)]

    def look(self, loop: Loop, moment: Moment) -> None:
        if not loop.dense(moment.step) or moment.closure:
            return
        held = loop.held[moment.index]
        named = [(h.name, h.parameter) for h in held if fit(h.parameter)]
        named += [
            (f"the gradient of {held[i].name}", g)
            for i, g in moment.grads.items()
            if fit(g) and g.dtype is torch.float16
        ]
        if named and len({t.device for _, t in named}) == 1:
            tops = [largest(t.detach()).float() for _, t in named]
            loop.transfer.ask(tops, partial(self._tops, [(n, _end(t.dtype)) for n, t in named]))
        grads = [(i, g) for i, g in moment.grads.items() if fit(g) and (self._half or g.dtype is torch.float16)]
        if grads and loop.scaler is None and len({g.device for _, g in grads}) == 1:
            asked = []
            for _, g in grads:
                sample = spread(g).abs().float()
                some = sample > 0
                asked += [some.sum().float(), (some & (sample < SMALLEST_NORMAL)).sum().float(),
                          (some & (sample < 0.99 * SMALLEST)).sum().float()]  # fmt: skip
            loop.transfer.ask(asked, lambda numbers: self._below.__setitem__(moment.index, numbers))

    def _tops(self, named: list[tuple[str, float]], numbers: list[float]) -> None:
        self._seen += [(name, number, end) for (name, end), number in zip(named, numbers, strict=True)]

    def before_step(self, loop: Loop, moment: Moment) -> None:
        seen, self._seen = self._seen, []
        for name, number, end in seen:
            if not number < float("inf"):
                continue  # RUN-9 has it
            loop.judge(RULE, moment.step, RULE.margin(number / end, SHARE), partial(_near_the_end, name, number, end))
        below = self._below.pop(moment.index, None)
        if below is not None:
            self._underflow(loop, moment, below)
        if loop.dense(moment.step):
            self._epsilon(loop, moment)

    def _underflow(self, loop: Loop, moment: Moment, numbers: list[float]) -> None:
        some, below, beyond = (sum(numbers[k::3]) for k in range(3))
        if not some or beyond:  # what is smaller than float16 can hold was scaled up and down again
            return
        loop.judge(
            RULE, moment.step, RULE.margin(below / some, BELOW),
            lambda: {
                "message": f"{below / some:.0%} of the gradients that are not zero are below {SMALLEST_NORMAL:.2g}, where "
                "float16 loses digits, and the smaller ones are zero: the loss is not scaled",
                "where": "gradients", "evidence": f"{some:g} sampled elements; torch.amp.GradScaler scales the loss",
            },
        )  # fmt: skip

    def _epsilon(self, loop: Loop, moment: Moment) -> None:
        for place, group in enumerate(moment.optimizer.param_groups):
            eps = group.get("eps")
            half = [p for p in group["params"] if p.dtype is torch.float16]
            if not half or not isinstance(eps, float) or not 0 < eps <= SMALLEST / 2 or group.get("fused"):
                continue
            loop.judge(RULE, moment.step, RULE.margin(1.0, SHARE), partial(_no_epsilon, moment, place, eps, len(half)))

    def drop(self) -> None:
        self._seen, self._below = [], {}


def _end(dtype: torch.dtype) -> float:
    if dtype in (torch.float32, torch.float64):
        return HUGE / SHARE
    return float(torch.finfo(dtype).max)


def _near_the_end(name: str, number: float, end: float) -> dict[str, Any]:
    holds = "float16 holds" if end < 1e5 else "its type is good for"
    return {
        "message": f"{name} reaches {number:.4g}, {number / end:.0%} of the largest number that {holds}, {end:.4g}",
        "where": name.removeprefix("the gradient of "), "evidence": "the next growth of it is infinite",
    }  # fmt: skip


def _no_epsilon(moment: Moment, place: int, eps: float, count: int) -> dict[str, Any]:
    return {
        "message": f"eps = {eps:g} of {type(moment.optimizer).__name__} is zero in float16, in which {count} parameters of "
        f"group {place} are: small gradients are divided by zero",
        "where": f"group {place}", "evidence": f"the smallest number of float16 is {SMALLEST:.2g}",
    }  # fmt: skip
