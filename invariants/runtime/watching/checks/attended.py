"""RUN-40: an attention that looks at the padding alone: its mask is the other way round.

Where an embedding has a padding_idx, the tokens tell which positions are padding. The weights of an attention, which autograd
keeps for the backward, tell where it looks; of a fused one its mask does.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run40_padding import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import nodes
from karat.invariants.runtime.watching.loop import Loop

MOST_NODES = 2000
MOST_WEIGHTS = 1 << 22
"""Elements of an attention that is read."""
ALL = 0.99
"""Share of the weights on the padding from which the rest is left out."""
SHUT = -1e3
"""What a mask adds where an attention does not look, at most."""


class Attended(Check):
    rules = (RULE,)
    interval = "first steps"
    of_forward = True

    def __init__(self) -> None:
        self._pads: set[int] = set()
        self._found: float | None = None

    def start(self, loop: Loop) -> None:
        parts = [m for m in loop.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        declared = loop.spec.padding
        self._pads = {int(m.padding_idx) for m in parts if m.padding_idx is not None}
        self._pads |= {declared} if isinstance(declared, int) else set()
        if not parts or len(self._pads) != 1:
            loop.off(self)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._found is not None or loop.step - loop.first >= 3 or not torch.is_grad_enabled():
            return
        made = [t for _, t in leaves(output) if t.grad_fn is not None]
        (pad,) = self._pads
        tokens = [
            t for _, t in leaves((args, kwargs)) if t.ndim == 2 and not t.is_floating_point() and t.dtype is not torch.bool
        ]  # fmt: skip
        for given in tokens:
            padding = given == pad
            if bool((padding.any(1) & ~padding.all(1)).any()):
                shares = [share for t in made[:2] for share in looked_at(t, padding)]
                if shares and max(shares) > ALL:
                    self._found = max(shares)
                    return

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._found is not None and not loop.tallies[RULE.id].violations:
            found = self._found
            loop.judge(
                RULE, moment.step, RULE.margin(1.0, 0.0),
                partial(
                    dict, message="an attention looks at positions of padding alone: its mask of padding is the other way round",
                    where="attention", severity=Severity.WARN,
                    evidence=f"{100 * found:.4g}% of its weight is on padding, in sequences that have other tokens",
                ),
            )  # fmt: skip
        if self._found is not None or moment.step - loop.first >= 2:
            loop.off(self)


def looked_at(output: Tensor, padding: Tensor) -> list[float]:
    """Of each attention below an output: its mean weight on padding, over sequences that have padding and other tokens."""
    mixed = padding.any(1) & ~padding.all(1)
    found = []
    for kind, node in nodes(output, MOST_NODES):
        weights = None
        with contextlib.suppress(RuntimeError, AttributeError):
            if kind.startswith(("SoftmaxBackward", "SafeSoftmaxBackward")):
                weights = node._saved_result
            elif kind.startswith("ScaledDotProduct"):
                weights = _open(node._saved_attn_mask)
        if isinstance(weights, Tensor):
            share = _share(weights.detach(), padding, mixed)
            if share is not None:
                found.append(share)
    return found


def _open(mask: Any) -> Tensor | None:
    """Where a mask lets an attention look, as weights; None of one that shuts nothing, or all."""
    if not isinstance(mask, Tensor):
        return None
    allowed = mask if mask.dtype is torch.bool else mask > SHUT
    free = allowed.float()
    total = free.sum(-1, keepdim=True)
    return free / total if bool((total > 0).all()) and not bool(allowed.all()) else None


def _share(weights: Tensor, padding: Tensor, mixed: Tensor) -> float | None:
    size, length = padding.shape
    if (
        weights.ndim not in (3, 4)
        or weights.shape[-1] != length
        or not weights.numel()
        or weights.numel() > MOST_WEIGHTS
    ):
        return None
    if weights.shape[0] % size:
        return None
    each = weights.reshape(size, -1, length).float()
    on = (each * padding[:, None]).sum(-1)[mixed]
    return float(on.mean()) if bool(torch.isfinite(on).all()) else None
