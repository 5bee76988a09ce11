"""mHC-lite as its paper has it: what a sublayer does to the residual streams depends on the streams, token by token.

Per sublayer and token, with v = (1 + gamma) · X / rms(X) over all n streams, flat:

    (mix, pre, post) = scale_k · W_k v + b_k, each with its own scale
    H = sum_k softmax(mix)_k P_k;  u = sigmoid(pre) · X;  X <- H X + 2 sigmoid(post) F(norm(u))

The maps W start at zero, so that the first forward is that of the static streams (residual.py). Source: mHC-lite, Yang and
Gao 2026, arXiv 2601.05732 and its code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from karat.core.formulas import birkhoff
from karat.invariants.runtime.torch_ops import TORCH
from karat.trainer.models.normalization import unit_rms
from karat.trainer.models.residual import gate_start, mix_start

SCALE_START = 0.01


class TokenCoefficients(NamedTuple):
    """What one sublayer does to the streams of R tokens: (R, n, n), (R, n), (R, n)."""

    mixing_RNN: Tensor
    pre_RN: Tensor
    post_RN: Tensor


class DynamicStreams(nn.Module):
    """The parameters of `sublayers` updates of `streams` streams of width d_model, which depend on their input."""

    def __init__(self, sublayers: int, streams: int, d_model: int) -> None:
        super().__init__()
        self.streams = streams
        self.parts = [math.factorial(streams), streams, streams]
        gates = gate_start(sublayers, streams)
        self.biases = nn.Parameter(torch.cat([mix_start(sublayers, streams), gates, gates], dim=1))
        self.maps = nn.Parameter(torch.zeros(sublayers, sum(self.parts), streams * d_model))
        self.scales = nn.Parameter(torch.full((sublayers, 3), SCALE_START))
        self.gains = nn.Parameter(torch.zeros(sublayers, streams * d_model))

    def coefficients(self, sublayer: int, x_RND: Tensor) -> TokenCoefficients:
        """The matrices and gates of one sublayer for the streams (R, n, d_model) of R tokens, with gradients."""
        v_RC = unit_rms(x_RND.flatten(1)) * (1 + self.gains[sublayer])
        scale_K = self.scales[sublayer].repeat_interleave(torch.tensor(self.parts, device=v_RC.device))
        logits_RK = v_RC @ (self.maps[sublayer] * scale_K[:, None]).t() + self.biases[sublayer]
        mix, pre, post = torch.split(logits_RK.float(), self.parts, dim=-1)
        rows = birkhoff.mixture(mix.softmax(-1).unbind(-1), self.streams, TORCH)
        mixing_RNN = torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)
        return TokenCoefficients(mixing_RNN, pre.sigmoid(), 2 * post.sigmoid())


def sublayer_input(x_RND: Tensor, pre_RN: Tensor) -> Tensor:
    """pre · X, (R, d_model)."""
    return (pre_RN[:, None] @ x_RND).squeeze(1)


def updated(x_RND: Tensor, coefficients: TokenCoefficients, y_RD: Tensor) -> Tensor:
    """H X + post outer F, (R, n, d_model)."""
    return torch.baddbmm(coefficients.post_RN[..., None] * y_RD[:, None], coefficients.mixing_RNN, x_RND)


@torch.no_grad()
def worst_token(mixing_SRNN: Tensor) -> Tensor:
    """The matrices, in the order of depth, of the token with the one that is furthest from doubly stochastic: (S, n, n).

    NaN counts as furthest.
    """
    off = torch.stack([(mixing_SRNN.sum(-1) - 1).abs().amax(-1), (mixing_SRNN.sum(-2) - 1).abs().amax(-1),
                       -mixing_SRNN.amin((-1, -2))])  # fmt: skip
    return mixing_SRNN[:, off.nan_to_num(torch.inf).amax((0, 1)).argmax()]
