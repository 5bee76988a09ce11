"""Which functions of torch a forward calls that say how it mixes positions and what it drops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from karat.invariants.runtime.preflight.listen import DROPOUTS
from karat.invariants.runtime.watching.counted import LOW, rounded

SOFTMAX: tuple[Callable[..., Any], ...] = (F.softmax, torch.softmax, Tensor.softmax)
SIGMOID: tuple[Callable[..., Any], ...] = (torch.sigmoid, F.sigmoid, Tensor.sigmoid, torch.special.expit)
FAR = -1e3
"""What is added to a score from which on down it leaves a key out."""
MIXERS = (nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Functions(TorchFunctionMode):
    """As a context manager. lengths: of queries and of keys, of each attention; rates: of what was dropped in train mode;
    squashed: identity of outputs of softmax and sigmoid, with the name of the function; rounded: see counted.py."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[tuple[int, int]] = []
        self.rates: list[float] = []
        self.squashed: dict[int, tuple[str, Tensor]] = {}
        self.weighted = False
        self.rounded: list[str] = []
        self.masks: list[Tensor] = []
        """Of each attention with a mask of keys, the keys that are left out."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func is F.scaled_dot_product_attention or func is F.multi_head_attention_forward:
            q, k = (named[name] if name in named else args[place] for place, name in enumerate(("query", "key")))
            axis = -2 if func is F.scaled_dot_product_attention else 0
            self.lengths.append((q.shape[axis], k.shape[axis]))
            if (mask := left_out(func, args, named)) is not None:
                self.masks.append(mask)
        elif func in SOFTMAX or func in SIGMOID:
            self.weighted = self.weighted or func in SOFTMAX
            self.squashed[id(result)] = ("softmax" if func in SOFTMAX else "sigmoid", result)
        elif func in DROPOUTS:
            p = float(named.get("p", args[1] if len(args) > 1 else 0.5))
            if named.get("training", args[2] if len(args) > 2 else True):
                self.rates.append(p)
        elif isinstance(result, Tensor) and result.dtype in LOW and (lost := rounded(func, args, result)):
            self.rounded.append(lost)
        return result


def left_out(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """Of one attention the keys (B, T) that no query of a sample looks at by its mask; None without one of that kind."""
    if func is F.multi_head_attention_forward:
        mask = named.get("key_padding_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return None
        return mask.detach().clone() if mask.dtype is torch.bool else mask.detach() <= FAR
    mask = named.get("attn_mask", args[3] if len(args) > 3 else None)
    if not isinstance(mask, Tensor) or mask.ndim < 3 or mask.shape[-2] != 1:
        return None
    keys = mask.detach().reshape(mask.shape[0], -1, mask.shape[-1])[:, 0]
    return ~keys if keys.dtype is torch.bool else keys <= FAR


def mixes(module: nn.Module, functions: Functions) -> bool:
    """Whether a model has what mixes positions: attention, a recurrence, a convolution wider than one."""
    if functions.lengths or functions.weighted:
        return True
    return any(isinstance(m, MIXERS) or (isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1) for m in module.modules())
