"""RUN-11: what a step applies was computed since the last step, from nothing, and once.

One small parameter of each optimizer, the anchor, carries two hooks of autograd: the one before a gradient is added sees
whether the old one was cleared, the one after it counts. So nothing has to be guessed from the numbers, and accumulation,
closures, and other optimizers' backward passes do not disturb it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain


@dataclass
class Anchor:
    """One parameter, and what its gradient went through since the last step of its optimizer.

    cleared: None, or an accumulation that began from no gradient, was seen. left: norms of what was there at the start of
    each accumulation that did not begin from None. repeats: differences between an accumulated gradient and what was there.
    """

    name: str
    parameter: Tensor
    handles: list[Any]
    backwards: int = 0
    cleared: bool = True
    left: list[Tensor] = field(default_factory=list)
    repeats: list[Tensor] = field(default_factory=list)

    def arrives(self, gradient: Tensor) -> None:
        """Before a gradient is added to the parameter's own."""
        held = self.parameter.grad
        if held is None:
            self.cleared = True
        else:
            self.left.append(torch.linalg.vector_norm(held.detach()))
            if self.backwards:
                self.repeats.append(torch.linalg.vector_norm(held.detach() - gradient.detach()))

    def added(self, parameter: Tensor) -> None:
        """After it was added."""
        self.backwards += 1

    def renew(self) -> None:
        """After a step."""
        self.backwards, self.cleared, self.left, self.repeats = 0, False, [], []


class Freshness(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._anchors: dict[int, Anchor] = {}
        self._answers: dict[int, tuple[list[float], list[float]]] = {}

    def look(self, loop: Loop, moment: Moment) -> None:
        anchor = self._anchors.get(moment.index)
        if anchor is not None and (anchor.left or anchor.repeats):
            count = len(anchor.left)
            loop.transfer.ask(
                [*anchor.left, *anchor.repeats],
                lambda numbers: self._answers.__setitem__(moment.index, (numbers[:count], numbers[count:])),
            )

    def before_step(self, loop: Loop, moment: Moment) -> None:
        anchor = self._anchors.get(moment.index)
        left, repeats = self._answers.pop(moment.index, ([], []))
        if anchor is None:
            return
        had = anchor.parameter.grad is not None
        cleared = anchor.cleared or any(norm == 0 for norm in left)
        if not had or moment.closure:
            return
        if not anchor.backwards:
            message = "no backward since the last step: the same gradient is applied again"
        elif not cleared:
            message = f"the gradients were not cleared since step {moment.step - 1}: zero_grad() is missing"
        elif any(norm == 0 for norm in repeats) and moment.forwards < anchor.backwards:
            message = (
                f"the same gradient was added twice: {anchor.backwards} backward passes to {moment.forwards} forward"
            )
        else:
            message = ""
        evidence = f"seen on {anchor.name}: {anchor.backwards} accumulations" + (
            f", the first onto a gradient of norm {left[0]:.3g}" if left else ""
        )
        loop.judge(
            RULE, moment.step, RULE.margin(float(bool(message)), 0.0),
            lambda: {"message": message, "where": "", "evidence": evidence},
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        anchor = self._anchors.get(moment.index)
        if anchor is not None:
            anchor.renew()
        else:
            self._choose(loop, moment)

    def _choose(self, loop: Loop, moment: Moment) -> None:
        """The smallest parameter with a dense gradient becomes the anchor; from the next step on it tells."""
        held = loop.held[moment.index]
        fit = [
            held[i] for i, g in moment.grads.items()
            if held[i].parameter.is_leaf and held[i].parameter.requires_grad and plain(g)
        ]  # fmt: skip
        if not fit:
            return
        chosen = min(fit, key=lambda h: h.parameter.numel())
        anchor = Anchor(chosen.name or "a parameter of the optimizer", chosen.parameter, [])
        anchor.handles = [
            chosen.parameter.register_hook(partial(_no_change, anchor)),  # type: ignore[no-untyped-call]
            chosen.parameter.register_post_accumulate_grad_hook(anchor.added),  # type: ignore[no-untyped-call]
        ]
        anchor.renew()
        self._anchors[moment.index] = anchor

    def drop(self) -> None:
        for anchor in self._anchors.values():
            for handle in anchor.handles:
                handle.remove()
        self._anchors, self._answers = {}, {}


def _no_change(anchor: Anchor, gradient: Tensor) -> None:
    with torch.no_grad():
        anchor.arrives(gradient)
