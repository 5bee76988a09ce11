"""Next-token cross-entropy in nats, taken through the head a few rows at a time: no (tokens, vocab) array is ever made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGITS_AT_A_TIME = 2**20
"""Elements of the logits that exist at once, 4 MiB: 256 rows of a vocabulary of 4096. They stay in the cache from the
product that makes them to the products that need their gradient."""


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total += a b, or total = a b for the first; in one product where the types are one."""
    if a.dtype == total.dtype:
        torch.mm(a, b, out=total) if first else total.addmm_(a, b)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


class _HeadLoss(torch.autograd.Function):
    """-mean of log_softmax(hidden · headᵀ)[target] over rows; its gradients are made in the forward pass, chunk by chunk.

    The logits' gradient is softmax - onehot, which is at hand right after the logits: each chunk is turned into its part
    of both gradients and forgotten. Under autocast the products are in its type, the softmax and the sums in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else head_VD.dtype
        wanted_hidden, wanted_head = ctx.needs_input_grad[:2]
        rows, vocab = len(hidden_RD), len(head_VD)
        total = hidden_RD.new_zeros((), dtype=torch.float64)
        d_hidden = torch.empty_like(hidden_RD) if wanted_hidden else None
        d_head = torch.empty_like(head_VD) if wanted_head else None
        head = head_VD.to(dtype)
        at_a_time = min(rows, max(1, LOGITS_AT_A_TIME // vocab))
        room = torch.empty(at_a_time, vocab, dtype=dtype)
        with torch.autocast("cpu", enabled=False):
            for first in range(0, rows, at_a_time):
                part = slice(first, first + at_a_time)
                hidden, targets = hidden_RD[part].to(dtype), targets_R[part, None]
                logits = torch.mm(hidden, head.t(), out=room[: len(hidden)])
                log_p = torch.log_softmax(logits.to(head_VD.dtype), -1)
                total -= log_p.gather(-1, targets).sum(dtype=torch.float64)
                if d_hidden is None and d_head is None:
                    continue
                difference = log_p.exp_().scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=log_p.dtype))
                difference = difference.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = difference @ head
                if d_head is not None:
                    _add_product(d_head, difference.t(), hidden, first=first == 0)
        ctx.save_for_backward(*(gradient for gradient in (d_hidden, d_head) if gradient is not None))
        ctx.rows = rows
        return (total / rows).to(head_VD.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        made = [gradient * (gradients[0] / ctx.rows) for gradient in ctx.saved_tensors]
        wanted_hidden, wanted_head = ctx.needs_input_grad[:2]
        return (
            made[0] if wanted_hidden else None,
            made[-1] if wanted_head else None,
            None,
        )


def head_loss(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """-mean ln p(target) with p = softmax(hidden · headᵀ), in nats per token, 0-dim; over ln 2: bits per token.

    hidden and head of one floating type, targets int64 in 0..V-1. The sum is kept in float64. Gradients for hidden and
    head; a gradient of the gradient is an error.
    """
    if len(hidden_BTD.shape) != targets_BT.ndim + 1 or hidden_BTD.shape[:-1] != targets_BT.shape:
        raise ValueError(
            f"targets must have the shape of hidden without its last axis, got {tuple(targets_BT.shape)} for "
            f"{tuple(hidden_BTD.shape)}"
        )
    loss: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), head_VD, targets_BT.reshape(-1)
    )
    return loss
