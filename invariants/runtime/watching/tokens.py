"""How targets lie to the tokens of the inputs: one on, in place, two on, one back; and which positions are padding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from karat.invariants.runtime.preflight.trees import Path

NEARLY = 0.98
"""The share of the positions that must agree."""
CLEARLY = 0.75
"""What any other relation must stay below."""
SHIFTS = {"next": 1, "same": 0, "two": 2, "previous": -1}


def agreement(inputs: Tensor, targets: Tensor, shift: int) -> tuple[float, int]:
    """The share of counted targets t that equal input t + shift, and how many there are; targets below 0 do not count."""
    length = inputs.shape[1]
    low, high = max(0, -shift), min(length, length - shift)
    told, seen = targets[:, low:high], inputs[:, low + shift : high + shift]
    counts = told >= 0
    number = int(counts.sum())
    return (float(((told == seen) & counts).sum()) / number if number else 0.0), number


def relation(inputs: Tensor, targets: Tensor) -> str:
    """Which of SHIFTS holds alone, nearly everywhere; "rolled" where the last target is the first input; "" for none."""
    if inputs.shape != targets.shape or inputs.shape[1] < 4 or len(torch.unique(inputs)) < 3:
        return ""
    inputs = inputs.to(targets.device)
    shares = {name: agreement(inputs, targets, shift) for name, shift in SHIFTS.items()}
    holding = [name for name, (share, number) in shares.items() if share >= NEARLY and number >= 8]
    others = [name for name, (share, _) in shares.items() if share >= CLEARLY]
    if len(holding) != 1 or len(others) != 1:
        return ""
    last = targets[:, -1]
    if holding[0] == "next" and len(last) >= 4 and bool((last >= 0).all()):
        first = inputs[:, 0]
        if torch.equal(last, first.to(last.dtype)) and len(torch.unique(first)) > 2:
            return "rolled"
    return holding[0]


def token_inputs(inputs: Mapping[Path, Tensor], rows: torch.Size) -> dict[Path, Tensor]:
    """The inputs of whole numbers that have a value for each row (B, T), or more of them than were read."""
    if len(rows) != 2:
        return {}
    return {
        path: t[: rows[0], : rows[1]] for path, t in inputs.items()
        if t.ndim == 2 and not t.is_floating_point() and not t.is_complex() and t.dtype is not torch.bool
        and t.shape[0] >= rows[0] and t.shape[1] >= rows[1]
    }  # fmt: skip


def counted_padding(inputs: Tensor, targets: Tensor, pad: int) -> tuple[int, int]:
    """Of the positions at which input and target are padding: how many count in the loss, of how many there may be."""
    inside = (inputs.to(targets.device) == pad) & (targets == pad)
    return int(inside.sum()), int((inputs == pad).sum())


def trailing(inputs: Tensor, targets: Tensor) -> int | None:
    """The token that fills the ends of several rows, to different lengths, counts there, and is followed by no other."""
    ends = inputs[:, -1]
    if len(ends) < 4:
        return None
    token = int(ends.mode().values)
    is_token = inputs == token
    run = is_token.flip(1).long().cumprod(1).sum(1)
    filled = run >= 2
    if int(filled.sum()) < max(3, len(ends) // 4) or int(is_token.sum()) != int(run.sum()):
        return None
    if len(torch.unique(run)) < 3 or int(run.max()) < 4:
        return None
    counted, _ = counted_padding(inputs, targets, token)
    return token if counted >= int(run.sum()) // 2 else None
