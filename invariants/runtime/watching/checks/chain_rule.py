"""RUN-8: a torch.autograd.Function of the loop's own whose backward does not multiply by the gradient that it is given.

What it gives back is looked at beside what it was given, element by element: of a derivative times a gradient the sizes go
together, of a derivative alone they do not.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import nodes
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop

MOST_NODES, MOST_HOOKS, MOST_NUMBERS = 2000, 4, 1 << 16
LEAST = 1024
"""Elements of a gradient that is looked at."""
SPREAD = 0.4
"""How much the logarithms of the gradient that is given are apart, at least."""
TOGETHER = 0.08
"""The correlation of the logarithms below which the sizes do not go together."""
ONE_WAY = 0.9
"""The mean product of the signs above which the gradient is followed, if only in its direction."""
STEPS = 2
THEIRS = ("torch.", "functorch.")


class ChainRule(Check):
    rules = (RULE,)
    interval = "first steps"
    of_forward = True

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._found: dict[str, bool] = {}
        self._times: dict[str, int] = {}

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._handles or loop.step - loop.first >= 3 or not torch.is_grad_enabled():
            return
        made = [t for _, t in leaves(output) if t.grad_fn is not None]
        for _, node in nodes(made[0], MOST_NODES) if made else ():
            kind = getattr(type(node), "_forward_cls", None)
            if kind is None or kind.__module__.startswith(THEIRS) or len(self._handles) >= MOST_HOOKS:
                continue
            self._handles.append(node.register_hook(harmless(loop, self, partial(self._passed, kind.__name__))))

    def _passed(self, name: str, back: Any, given: Any) -> None:
        """After the backward of a node: what it gave back, and what it was given."""
        several = [g for g in back if isinstance(g, Tensor)]
        into = [g for g in given if isinstance(g, Tensor)]
        if len(several) == 1 and len(into) == 1 and several[0].shape == into[0].shape:
            with torch.no_grad():
                apart = unrelated(into[0], several[0])
            if apart is not None:
                self._found[name] = self._found.get(name, True) and apart

    def before_step(self, loop: Loop, moment: Moment) -> None:
        self._let_go()
        for name, apart in self._found.items():
            self._times[name] = self._times.get(name, 0) + 1 if apart else -3
            if self._times[name] == STEPS:
                loop.judge(
                    RULE, moment.step, RULE.margin(1, 0),
                    partial(
                        dict, message=f"the backward of {name} gives back numbers that have nothing to do with the gradient "
                        "that it is given: it does not multiply by it (the chain rule)", where=name, severity=Severity.WARN,
                        evidence=f"the sizes of {LEAST} elements or more, in {STEPS} steps, are uncorrelated",
                    ),
                )  # fmt: skip
        self._found = {}
        if moment.step - loop.first >= 2:
            loop.off(self)

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def drop(self) -> None:
        self._let_go()


def unrelated(given: Tensor, back: Tensor) -> bool | None:
    """Whether the sizes of what was given and given back do not go together; None where they do not tell."""
    a, b = given.detach().flatten(), back.detach().flatten()
    if not a.is_floating_point() or len(a) < LEAST:
        return None
    every = max(1, len(a) // MOST_NUMBERS)
    a, b = a[::every].double().abs(), b[::every].double().abs()
    here = (a > 0) & (b > 0) & a.isfinite() & b.isfinite()
    if int(here.sum()) < LEAST:
        return None
    x, y = a[here].log(), b[here].log()
    x, y = x - x.mean(), y - y.mean()
    wide, other = float(x.square().mean().sqrt()), float(y.square().mean().sqrt())
    if wide < SPREAD:
        return None
    signs = given.detach().flatten()[::every].sign() * back.detach().flatten()[::every].sign()
    if abs(float(signs.float().mean())) > ONE_WAY:
        return False
    return other == 0 or abs(float((x * y).mean())) < TOGETHER * wide * other
