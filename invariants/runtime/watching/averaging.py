"""What became of an average between two steps, told from samples: updated rightly, not at all, or in a way that has a name."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run19_ema import RULE
from karat.invariants.runtime.watching.sampling import spread

SHARE = 0.05
"""Of the update that an average should get: how far it may be from that."""
ROUNDING = 4
"""Units in the last place of the average."""


class Kind(StrEnum):
    RIGHT = "right"
    MISSING = "missing"
    STILL = "still"
    SWALLOWED = "swallowed"
    SWAPPED = "swapped"
    TWICE = "twice"
    EARLY = "early"
    COPY = "copy"
    OTHER = "other"
    ELSEWHERE = "elsewhere"


SAID: dict[Kind, tuple[str, int, Severity]] = {
    Kind.STILL: (
        "is written to and does not change: it follows another model than the one that trains",
        2,
        Severity.FAIL,
    ),
    Kind.SWALLOWED: ("is written to and does not change: its type rounds 1 - decay away", 2, Severity.FAIL),
    Kind.SWAPPED: ("keeps {decay:.3g} of itself at each step: decay and 1 - decay are exchanged", 2, Severity.FAIL),
    Kind.TWICE: ("is updated twice a step", 2, Severity.FAIL),
    Kind.EARLY: ("takes the weights from before the step", 2, Severity.FAIL),
    Kind.COPY: ("is a copy of the model at every step", 3, Severity.WARN),
    Kind.OTHER: ("keeps {decay:.6g} of itself at each step", 3, Severity.FAIL),
    Kind.ELSEWHERE: ("goes elsewhere than towards the model", 3, Severity.FAIL),
}
"""Kind -> what is said, how often in a row it must be seen, and what it counts where the decay is declared."""


class Numbers(NamedTuple):
    """2-norms on a sample. moved: of the average; behind: of it to the model's, before and after; weights; by: of the model."""

    moved: float
    behind: float
    after: float
    weights: float
    by: float

    @staticmethod
    def of(old: Tensor, new: Tensor, old_value: Tensor, value: Tensor, decay: float | None) -> list[Tensor]:
        """The norms as 0-d tensors."""
        p, q, v = old.float(), new.float(), value.float()
        behind = p - v
        residual = torch.add(q - v, behind, alpha=-decay) if decay is not None else q - v
        return list(torch._foreach_norm([q - p, behind, residual, p, v - old_value.float()]))


def classify(
    n: Numbers,
    written: bool,
    dtype: torch.dtype,
    decay: float | None,
    samples: tuple[Tensor, Tensor, Tensor],
    mean: Tensor,
) -> tuple[Kind | None, float]:
    """The kind, and the share that the average kept of itself. None: nothing can be told, the model did not move."""
    if not (n.by > 0 and n.behind > 0):
        return None, 0.0
    epsilon = torch.finfo(dtype).eps
    slack = ROUNDING * epsilon * n.weights
    kept = 1 - n.moved / n.behind
    if n.moved == 0 and not written:
        return Kind.MISSING, 1.0
    if n.moved <= slack:
        if decay is not None and n.moved == 0 and 1 - decay < epsilon / 2 and dtype in (torch.bfloat16, torch.float16):
            return Kind.SWALLOWED, 1.0
        expected = (1 - decay) * n.behind if decay is not None else n.behind
        return (Kind.STILL, 1.0) if expected > 2 * slack else (None, 1.0)
    if decay is None:
        toward = abs(n.after - (n.behind - n.moved)) <= SHARE * n.moved + slack
        return (Kind.RIGHT if toward else Kind.ELSEWHERE), kept
    share = (1 - decay) * n.behind
    if RULE.margin(max(n.after - slack, 0.0) / share if share else 0.0, SHARE) >= 0:
        return Kind.RIGHT, kept
    return _named(decay, slack, samples, mean), kept


def _named(decay: float, slack: float, samples: tuple[Tensor, Tensor, Tensor], mean: Tensor) -> Kind:
    """Which wrong update it was. Waits for the device."""
    old, before, after = (s.float() for s in samples)
    now = spread(mean).float()
    candidates = (
        (Kind.SWAPPED, (1 - decay) * old + decay * after, decay * (after - old)),
        (Kind.EARLY, decay * old + (1 - decay) * before, (1 - decay) * (before - old)),
        (Kind.TWICE, decay**2 * old + (1 - decay**2) * after, (1 - decay**2) * (after - old)),
        (Kind.COPY, after, after - old),
    )
    distances = [(float((now - given).norm()), float(update.norm()), kind) for kind, given, update in candidates]
    fitting = [(d, kind) for d, update, kind in distances if d <= SHARE / 2 * update + slack]
    if fitting:
        return min(fitting, key=lambda f: f[0])[1]
    along, moved = after - old, now - old
    share = float((moved * along).sum() / along.square().sum())
    if 0 <= share <= 1 and float((moved - share * along).norm()) <= SHARE * float(moved.norm()) + slack:
        return Kind.OTHER
    return Kind.ELSEWHERE
