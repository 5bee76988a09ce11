"""The loss as loss_fn returns it, and what its backward left at the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from karat.core.errors import KaratError
from karat.invariants.runtime.preflight.listen import Heard

TOTALS = ("loss", "total", "total_loss")


class SubjectError(KaratError):
    """The loss function or the network cannot be run, or does not give what it must."""


@dataclass(frozen=True)
class Loss:
    """The loss that a step would minimise, and its terms by name where loss_fn gives several."""

    total: Tensor
    terms: Mapping[str, Tensor]
    has_total: bool
    """Whether loss_fn named the total itself; else it is the sum of the terms."""


class Reach(StrEnum):
    """What backward left at a parameter."""

    NONE = "no gradient"
    ZERO = "a gradient that is zero"
    NOT_FINITE = "a gradient that is not finite"
    REACHED = "a gradient"


def reach(p: Tensor) -> Reach:
    """The state of a parameter's gradient; a sparse one counts by its values."""
    if p.grad is None:
        return Reach.NONE
    values = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
    if not bool(values.isfinite().all()):
        return Reach.NOT_FINITE
    return Reach.REACHED if bool(values.any()) else Reach.ZERO


def dense_gradient(p: Tensor) -> Tensor:
    """The gradient that there is, a sparse one made dense."""
    if p.grad is None:
        raise ValueError("there is no gradient")
    return p.grad.to_dense() if p.grad.is_sparse else p.grad


@dataclass(frozen=True)
class First:
    """The first loss, its terms, what backward left at each parameter by id, and the modules that were called."""

    loss: float
    differentiable: bool
    terms: tuple[str, ...]
    reached: Mapping[int, Reach]
    called: frozenset[str]
    stuck: Mapping[str, float]
    """Name -> share of the elements with a gradient whose bits the first step leaves."""
    heard: tuple[Heard, ...]
    """What torch's loss functions were given."""


def read_loss(result: Any) -> Loss:
    """What loss_fn returned, as a loss; SubjectError when it is neither a scalar tensor nor a dictionary of such."""
    if isinstance(result, Tensor):
        terms, total = {"loss": result}, result
        has_total = True
    elif isinstance(result, Mapping):
        terms = {
            str(k): v for k, v in result.items()
            if isinstance(v, Tensor) and v.numel() == 1 and v.is_floating_point()
        }  # fmt: skip
        named = next((terms[key] for key in TOTALS if key in terms), None)
        has_total = named is not None
        total = named if named is not None else sum((t.sum() for t in terms.values()), torch.zeros(()))
    else:
        terms, total, has_total = {}, torch.zeros(()), False
    if not terms or total.numel() != 1 or not total.is_floating_point():
        shape = f" of shape {tuple(result.shape)}, {result.dtype}" if isinstance(result, Tensor) else ""
        raise SubjectError(
            f"loss_fn returned {type(result).__name__}{shape}",
            required="a floating-point tensor with one element, or a dictionary with such tensors, one to a term",
            next_step="return loss.mean(), or {'ce': ce, 'aux': aux}",
        )
    return Loss(total.sum(), terms, has_total)
