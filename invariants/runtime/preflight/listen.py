"""Listens to the loss functions of torch while loss_fn runs: what each was given, whoever calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOSSES: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
    F.mse_loss: "mse_loss",
    F.l1_loss: "l1_loss",
    F.smooth_l1_loss: "smooth_l1_loss",
    F.kl_div: "kl_div",
}


DROPOUTS: tuple[Callable[..., Any], ...] = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
)  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """One call of a loss function: its two tensors, detached, and its options."""

    name: str
    input: Tensor
    target: Tensor
    options: dict[str, Any]


class Listener(TorchFunctionMode):
    """As a context manager: `heard` lists the calls of known loss functions on two tensors, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in LOSSES:
            given = [*args, *(named[key] for key in ("input", "target")[len(args) :] if key in named)]
            if len(given) >= 2 and all(isinstance(t, Tensor) for t in given[:2]):
                options = {key: value for key, value in named.items() if key not in ("input", "target")}
                self.heard.append(Heard(LOSSES[func], given[0].detach(), given[1].detach(), options))
        return func(*args, **named)


class DropoutListener(TorchFunctionMode):
    """As a context manager: `active` lists the calls that drop something, by the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in DROPOUTS:
            p, training, *_ = (*args[1:3], 0.5, True) if len(args) < 3 else args[1:3]
            if len(args) == 2:
                training = True
            if named.get("p", p) > 0 and named.get("training", training):
                self.active.append(func.__name__)
        elif func is F.scaled_dot_product_attention and (named.get("dropout_p") or (args[4:5] or (0,))[0]):
            self.active.append(func.__name__)
        return func(*args, **named)
