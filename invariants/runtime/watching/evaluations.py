"""The evaluations that a loop logs, with a sample of the weights that were evaluated, so that a loss can be told from its
weights later. A value that is a tensor stays on its device until somebody asks."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karat.invariants.runtime.watching.fingerprint import sample
from karat.invariants.runtime.watching.loop import Loop

NAMES = ("val", "valid", "eval", "test", "dev", "heldout")
"""Names of logged numbers that begin so are evaluations of the weights as they are."""
MOST = 64
ROUNDED = 0.006
"""Of what is recorded: two digits behind the point are kept at least."""
CLOSE = 1e-6


@dataclass(frozen=True)
class Evaluation:
    """One logged evaluation: after how many steps, its value, and a sample of the weights then."""

    step: int
    value: Any
    weights: Tensor


class Evaluations:
    """The last evaluations under each name."""

    def __init__(self) -> None:
        self._known: dict[str, deque[Evaluation]] = {}

    def take(self, loop: Loop, name: str, value: Any) -> None:
        """Keeps a logged number, if it is an evaluation, and not the last one carried forward."""
        one = isinstance(value, Tensor) and value.numel() == 1
        if not name.startswith(NAMES) or not (one or isinstance(value, (int, float))):
            return
        known = self._known.setdefault(name, deque(maxlen=MOST))
        value = value.detach() if one else float(value)
        if one or not known or known[-1].value != value:
            known.append(Evaluation(loop.step, value, _weights(loop)))

    def now(self, loop: Loop) -> tuple[str, float] | None:
        """(name, value) of a last evaluation of the weights as they are now, a loss by its name; None without one."""
        for name, known in self._known.items():
            if "loss" in name and known[-1].step == loop.step and torch.equal(known[-1].weights, _weights(loop)):
                return name, float(known[-1].value)
        return None

    def foreign(self, loop: Loop, loss: float) -> tuple[str, float] | None:
        """(name, value) of a last evaluation of the weights as they are now, where a loss is nothing that is made of the
        evaluations so far: none of them, no mean of the last ones, no sum, and none of that under exp, log or a sign."""
        found = self.now(loop)
        if found is None or not math.isfinite(loss):
            return None
        values = [[float(e.value) for e in known] for known in self._known.values()]
        last = [several[-1] for several in values]
        if len(last) > 1 and min(last) <= loss <= max(sum(map(abs, last)), max(last)):
            return None
        made = {value for several in values for value in several}
        made |= {sum(several[-n:]) / n for several in values for n in range(2, len(several) + 1)}
        made |= {min(several) for several in values}
        forms = {form for value in made for form in _forms(value)}
        smoothed = any(len(several) > 1 and min(several) <= loss <= max(several) for several in values)
        if smoothed or any(abs(loss - form) <= ROUNDED * max(abs(form), 1.0) for form in forms):
            return None
        return found

    def older(self, loop: Loop, loss: float) -> tuple[str, int, float] | None:
        """(name, steps, last value) where the loss is an older evaluation's, of other weights than those of now, and no
        last one's; None when it is not, or nothing is known of it."""
        values = {name: [(e, float(e.value)) for e in known] for name, known in self._known.items()}
        if any(_near(loss, known[-1][1]) for known in values.values()):
            return None
        now = _weights(loop)
        for name, known in values.items():
            older = [e for e, value in known[:-1] if _near(loss, value)]
            if older and not any(torch.equal(e.weights, now) for e in older):
                return name, older[-1].step, known[-1][1]
        return None


def _forms(value: float) -> list[float]:
    """What is recorded for a value: itself, or with the other sign, or a perplexity, or bits."""
    forms = [value, -value, value / math.log(2), 1 - value]
    if abs(value) < 50:
        forms.append(math.exp(value))
    if value > 0:
        forms += [math.log(value), math.sqrt(value)]
    return forms


def _weights(loop: Loop) -> Tensor:
    """A sample of up to eight trainable parameters, on their device."""
    trained = [p for p in loop.parameters.values() if p.requires_grad and p.numel()] or list(loop.parameters.values())
    chosen = trained[:: max(1, len(trained) // 8)][:8]
    device = chosen[0].device
    return torch.cat([sample(p, 32).to(device, torch.float32) for p in chosen])


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))
