"""mHC-lite: n residual streams, mixed by matrices that are doubly stochastic by construction.

Per sublayer s, with static (input-independent) parameters:

    H = sum_k softmax(mix)_k P_k    over the n! permutations: doubly stochastic (Birkhoff, von Neumann)
    u = sigmoid(pre) · X            the sublayer's input, one stream's width
    X <- H X + 2 sigmoid(post) F(norm(u))

Source: mHC-lite, Yang and Gao 2026, arXiv 2601.05732 and its code; its input-dependent part is dynamic_streams.py.
The start is theirs and breaks the symmetry: with equal pre and post the streams stay bit-identical for ever
and `mix` never gets a gradient, which is a defect of the seed's implementation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from karat.core.formulas import birkhoff
from karat.invariants.runtime.torch_ops import TORCH

OTHER_PERMUTATION_LOGIT = -8.0
"""The identity starts at 0, so that its weight is 1 / (1 + 23 e^-8) = 0.99234 for n = 4."""
FAVOURED_STREAM_LOGIT, OTHER_STREAM_LOGIT = 1.0, -1.0


class Coefficients(NamedTuple):
    """What S sublayers do to n streams: mixing matrices (S, n, n), input and output weights (S, n)."""

    mixing_SNN: Tensor
    pre_SN: Tensor
    post_SN: Tensor


class ResidualStreams(nn.Module):
    """The parameters of `sublayers` stream updates, evaluated for all of them in one batched call.

    biases: as the seed has them: every gate's logit has a bias beside it (the sum is what counts), and two streams mix by
    one logit, the identity's, the other's being 0. 9 numbers a sublayer for n = 2, 40 for n = 4; without: 6 and 32.
    """

    def __init__(self, sublayers: int, streams: int, *, biases: bool = False) -> None:
        super().__init__()
        self.streams = streams
        mix, gates = mix_start(sublayers, streams), gate_start(sublayers, streams)
        if biases and streams == 2:
            mix = mix[:, :1] - mix[:, 1:]
        self.mix_logits = nn.Parameter(mix)
        self.pre_logits = nn.Parameter(gates.clone())
        self.post_logits = nn.Parameter(gates)
        self.pre_bias = nn.Parameter(torch.zeros_like(gates)) if biases else None
        self.post_bias = nn.Parameter(torch.zeros_like(gates)) if biases else None

    def coefficients(self) -> Coefficients:
        """The matrices and gates of every sublayer, with gradients."""
        mix: Tensor = self.mix_logits
        pre: Tensor = self.pre_logits
        post: Tensor = self.post_logits
        if self.pre_bias is not None and self.post_bias is not None:
            pre, post = pre + self.pre_bias, post + self.post_bias
        if mix.shape[1] < math.factorial(self.streams):
            mix = torch.cat([mix, torch.zeros_like(mix)], dim=1)
        rows = birkhoff.mixture(mix.softmax(-1).unbind(-1), self.streams, TORCH)
        mixing = torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)
        return Coefficients(mixing, pre.sigmoid(), 2 * post.sigmoid())


def mix_start(sublayers: int, streams: int) -> Tensor:
    """The logits (S, n!) of the permutations at the start: nearly the identity, which is the first."""
    mix = torch.full((sublayers, math.factorial(streams)), OTHER_PERMUTATION_LOGIT)
    mix[:, 0] = 0.0
    return mix


def gate_start(sublayers: int, streams: int) -> Tensor:
    """The logits (S, n) of the gates at the start: each sublayer favours one stream, in turn."""
    gates = torch.full((sublayers, streams), OTHER_STREAM_LOGIT)
    gates[torch.arange(sublayers), torch.arange(sublayers) % streams] = FAVOURED_STREAM_LOGIT
    return gates


def expand(x_BTD: Tensor, streams: int) -> Tensor:
    """(B, T, D) -> (n, B·T·D): n equal streams."""
    return x_BTD.reshape(1, -1).expand(streams, -1)


def collapse(x_NR: Tensor) -> Tensor:
    """(n, R) -> (R): the mean of the streams. The scale does not matter, because the final norm follows."""
    return x_NR.mean(0)


def mix_and_add(x_NR: Tensor, mixing_NN: Tensor, post_N: Tensor, output_R: Tensor) -> Tensor:
    """H X + post outer F, (n, R) -> (n, R); the outer product is added in place to the fresh product."""
    return torch.mm(mixing_NN, x_NR).addr_(post_N, output_R)


def spread(x_NBTD: Tensor) -> Tensor:
    """Largest difference between streams at one coordinate over the largest magnitude; 0-dim, no gradient.

    0 means that the streams are copies of each other. Looked at on the first sequence of the batch only.
    """
    first = x_NBTD.detach()[:, 0]
    return (first.amax(0) - first.amin(0)).max() / first.abs().max()
