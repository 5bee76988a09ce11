"""Which module is the first: whose output is not finite, or differs between two forwards, from the inside outwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.probed import Probed
from karat.invariants.runtime.preflight.trees import Path, leaves

Differ = Callable[[Tensor, Tensor], bool]


def first_not_finite(subject: Probed) -> str:
    """The first module, in the order in which they end, that gives NaN or an infinity; empty where none does."""
    found: list[str] = []

    def seen(name: str, inputs: Any, output: Any) -> None:
        if any(not bool(t.isfinite().all()) for _, t in leaves(output) if t.is_floating_point()):
            found.append(name)

    subject.forward(training=subject.model.training, watched=_inner(subject), seen=seen)
    return found[0] if found else ""


def first_difference(
    subject: Probed, differ: Differ, *, edits: Mapping[Path, Tensor] | None = None, seeds: tuple[int, int] = (0, 0)
) -> str:
    """The first module whose outputs in two eval forwards `differ`; the second one has other inputs or another seed."""
    told: tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]] = ([], [])
    for k, notes in enumerate(told):

        def seen(name: str, inputs: Any, output: Any, notes: list[tuple[str, Tensor]] = notes) -> None:
            notes.extend((name, t.detach().clone()) for _, t in leaves(output) if t.is_floating_point())

        subject.forward(edits if k else None, seed=seeds[k], watched=_inner(subject), seen=seen)
    for (name, a), (other, b) in zip(*told, strict=False):
        if name != other or a.shape != b.shape:
            return ""  # the two forwards took different paths
        if differ(a, b):
            return name
    return ""


def _inner(subject: Probed) -> dict[str, nn.Module]:
    """Every module but the network itself, whose own hook ends the forward."""
    return {name: module for name, module in subject.model.named_modules() if module is not subject.network}


def roughly(a: Tensor) -> float:
    """The rounding that a comparison of such outputs must allow: 256 ulp of the largest magnitude, 4 of those of 16 bits."""
    if not a.numel():
        return 0.0
    ulps = 256 if torch.finfo(a.dtype).bits > 16 else 4
    return ulps * torch.finfo(a.dtype).eps * float(a.detach().abs().max())
