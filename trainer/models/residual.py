"""mHC-lite: n residual streams, mixed by matrices that are doubly stochastic by construction.

Per sublayer s, with static (input-independent) parameters:

    H = sum_k softmax(mix)_k P_k    over the n! permutations: doubly stochastic (Birkhoff, von Neumann)
    u = sigmoid(pre) · X            the sublayer's input, one stream's width
    X <- H X + 2 sigmoid(post) F(norm(u))

Source: mHC-lite, Yang and Gao 2026, arXiv 2601.05732 and its code; here without its input-dependent part.
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
    """The parameters of `sublayers` stream updates, evaluated for all of them in one batched call."""

    def __init__(self, sublayers: int, streams: int) -> None:
        super().__init__()
        self.streams = streams
        mix = torch.full((sublayers, math.factorial(streams)), OTHER_PERMUTATION_LOGIT)
        mix[:, 0] = 0.0  # the identity is the first permutation
        gates = torch.full((sublayers, streams), OTHER_STREAM_LOGIT)
        gates[torch.arange(sublayers), torch.arange(sublayers) % streams] = FAVOURED_STREAM_LOGIT
        self.mix_logits = nn.Parameter(mix)
        self.pre_logits = nn.Parameter(gates.clone())
        self.post_logits = nn.Parameter(gates)

    def coefficients(self) -> Coefficients:
        """The matrices and gates of every sublayer, with gradients."""
        weights = self.mix_logits.softmax(-1).unbind(-1)
        rows = birkhoff.mixture(weights, self.streams, TORCH)
        mixing = torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)
        return Coefficients(mixing, self.pre_logits.sigmoid(), 2 * self.post_logits.sigmoid())


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
