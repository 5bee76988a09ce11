"""RUN-20: models that are given as two, and are one: a teacher or a target that shares its parameters with the model goes with
it at every step."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run20_ties import RULE
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import callable_modules


class Shared(Check):
    rules = (RULE,)
    interval = "at the start, and when a forward is told of"
    heard = True

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, nn.Module]] = {}

    def start(self, loop: Loop) -> None:
        self._known = {id(module): (name, module) for name, module in callable_modules(loop.model)}
        given = [(name, m) for name, m in loop.model._modules.items() if m is not None]
        several = given if isinstance(loop.model, (nn.ModuleList, nn.ModuleDict)) else []
        for n, (name, module) in enumerate(several):
            for other, second in several[:n]:
                if one(module, second):
                    self._say(loop, f"the models {other} and {name} that are watched", module is second)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if id(module) in self._known or not self._known:
            return
        origin = next((name for name, known in self._known.values() if one(module, known)), None)
        if origin is not None:
            self._say(loop, f"the loop calls a copy of {origin or 'the model'}; it and the model", False)
            self._known = {}

    def _say(self, loop: Loop, which: str, alias: bool) -> None:
        why = "they are one object" if alias else "copy.copy() copies no parameters, copy.deepcopy() does"
        loop.judge(
            RULE, loop.step, RULE.margin(1, 0),
            partial(
                dict, message=f"{which} have the same parameters: what is trained of one is trained of the other. {why}",
                where="shared models", severity=Severity.WARN, evidence="each parameter of one is that of the other",
            ),
        )  # fmt: skip

    def drop(self) -> None:
        self._known = {}


def one(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules of one kind have the very same parameters."""
    if type(first) is not type(second):
        return False
    mine, other = list(first.parameters()), list(second.parameters())
    return bool(mine) and len(mine) == len(other) and all(a is b for a, b in zip(mine, other, strict=True))
