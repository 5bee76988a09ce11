"""Positions that are counted in a type too short for them: neighbours come to share a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOW = (torch.float16, torch.bfloat16)
MOST = 1 << 20
"""Elements of a tensor that is looked at."""
CASTS: tuple[Callable[..., Any], ...] = (
    Tensor.to, Tensor.type, Tensor.type_as, Tensor.half, Tensor.bfloat16,
)  # fmt: skip


def rounded(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> str:
    """What of 0, 1, 2, … is lost in the result of a call of torch, in words; empty where nothing is.

    Of arange, and of a cast of what counts by one: other integers in a shorter type may be meant, as sound is.
    """
    if not isinstance(result, Tensor) or result.dtype not in LOW or not 1 < result.numel() <= MOST or result.is_meta:
        return ""
    if func is torch.arange:
        if not all(isinstance(number, int) for number in args) or bool((result.diff() != 0).all()):
            return ""
    elif func in CASTS:
        source = args[0]
        if source.dtype in LOW or source.is_complex() or source.shape != result.shape or not _counts(source):
            return ""
        if bool((_line(result).diff() != 0).all()):
            return ""
    else:
        return ""
    kind = str(result.dtype).removeprefix("torch.")
    first = 256 if result.dtype is torch.bfloat16 else 2048
    return f"{result.numel()} positions are counted in {kind}, which has no odd numbers beyond {first}"


def _line(tensor: Tensor) -> Tensor:
    """The only axis of a tensor that is long, or of several its last one, in the first row."""
    long = [size for size in tensor.shape if size > 1]
    return (
        tensor.detach().flatten()[: long[-1]]
        if tensor.shape[-1] > 1
        else tensor.detach().flatten()[: max(long, default=1)]
    )


def _counts(source: Tensor) -> bool:
    """Whether a tensor counts by one."""
    line = _line(source)
    return len(line) > 1 and bool((line.diff() == 1).all())
