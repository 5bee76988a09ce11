"""RUN-38: the generator of the device is where it was a step ago, though dropout drew from it: it is seeded at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run38_repeats import RULE
from karat.invariants.runtime.preflight.modes import DROPOUTS
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import DENSE, Loop


class Reseeded(Check):
    rules = (RULE,)
    interval = "first steps"
    of_forward = True

    def __init__(self) -> None:
        self._drops: list[nn.Module] = []
        self._at: dict[int, Tensor] = {}

    def start(self, loop: Loop) -> None:
        self._drops = [m for m in loop.model.modules() if isinstance(m, DROPOUTS) and 0 < m.p < 1]
        if not self._drops:
            loop.off(self)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        step = loop.step - loop.first
        if torch.is_grad_enabled() and step < DENSE and any(m.training for m in self._drops):
            self._at[step] = _generator(loop)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first < DENSE - 1:
            return
        loop.off(self)
        at, self._at = [self._at[n] for n in range(DENSE) if n in self._at], {}
        if len(at) < DENSE or not all(torch.equal(at[0], other) for other in at[1:]):
            return
        loop.judge(
            RULE, moment.step, RULE.margin(1, 0),
            lambda: {
                "message": f"after the forwards of {DENSE} steps in a row the random generator is in one and the same state: it "
                "is seeded again in every step, and dropout draws the same mask each time",
                "where": "generator", "severity": Severity.WARN,
                "evidence": f"{len(self._drops)} dropouts are active, which draw from it in each forward",
            },
        )  # fmt: skip

    def drop(self) -> None:
        self._drops, self._at = [], {}


def _generator(loop: Loop) -> Tensor:
    device = next((p.device for p in loop.parameters.values()), torch.device("cpu"))
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
