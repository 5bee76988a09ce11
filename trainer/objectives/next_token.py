"""Next-token cross-entropy in nats, its gradient made in place: (tokens, vocab) is the largest array."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _CrossEntropy(torch.autograd.Function):
    """-mean of log_softmax(logits)[target] over rows; gradient (softmax - onehot) / rows.

    The saved log-probabilities become the gradient in place. torch's own pair allocates and writes two more
    arrays of that size in the backward pass. A second backward through the same graph raises (torch notices
    the changed array).
    """

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, targets_R: Tensor) -> Tensor:
        log_p_RV = F.log_softmax(logits_RV, dim=-1)
        ctx.save_for_backward(log_p_RV, targets_R)
        return -log_p_RV.gather(-1, targets_R[:, None]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_p_RV, targets_R = ctx.saved_tensors
        share = gradients[0] / targets_R.numel()
        gradient = log_p_RV.exp_().mul_(share)
        gradient.scatter_add_(-1, targets_R[:, None], -share.expand(targets_R.numel(), 1))
        return gradient, None


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-mean ln p(target), in nats per token, 0-dim; over ln 2: bits per token (per byte, at vocab 256)."""
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BTV.flatten(0, -2), targets_BT.flatten()
    )
    return loss
