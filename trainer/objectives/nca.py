"""A neural cellular automaton on a 9 x 9 torus with 9 states, driven by the transformer's hidden states.

A fixed seed grid takes a few steps of a small learned local rule; the rule is conditioned on the mean
hidden state, so that the objective's gradient reaches the transformer. Two terms:

    entropy     (H - centre)², H the entropy in nats of the hard grid's state frequencies (argmax per cell),
                with the gradient of the soft one. The centre is the middle of the band [1.5, ln 9], so that
                the gradient vanishes at one point and not on the whole band (where the seed's always was).
    histogram   KL(classes of the batch's tokens || soft states): what makes the summary say something.

Guarded at run time is the hard H, which nothing here clamps. Control comes from the update's form: the
learned part is normalised over the grid, so that cells disagree, and bounded by REACH; a cell's own state
has a head start of INERTIA; and SHARPNESS makes a cell's soft distribution nearly one state, so that the
gradient of the soft H is right about the hard one. (Without the last two, H fell to 0.83 in 240 steps.)
Only the state bias can move every cell alike. Source: the seed's NCA objective (9 x 9, 9 states, its
generator), whose grid no model parameter ever touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from karat.core.formulas import entropy
from karat.invariants.runtime.torch_ops import TORCH

SIDE, STATES = 9, 9
CELLS = SIDE * SIDE
BAND_NATS = (1.5, math.log(STATES))
CENTRE_NATS = (BAND_NATS[0] + BAND_NATS[1]) / 2
INERTIA, REACH, SHARPNESS = 1.0, 1.0, 4.0
TILT = 0.2
"""The state bias starts at TILT ... -TILT, so that H starts off the band's end: 1.86 to 2.12 (20 seeds)."""
SMOOTHING = 1e-6
"""Mass spread over all states before a logarithm: keeps every gradient finite when a state dies out."""


class NcaConfig(BaseModel):
    """Weights are in units of loss per nat² and per nat; `seed` fixes the starting grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.25, ge=0, allow_inf_nan=False, description="of the entropy term")
    histogram_weight: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="of the KL term")
    steps: int = Field(default=3, ge=1, le=8, description="updates of the automaton")
    hidden: int = Field(default=32, ge=1, description="units of the local rule")
    seed: int = Field(default=9, ge=0, description="of the starting grid")


@dataclass(frozen=True)
class NcaOutput:
    """What the objective gives; 0-dim tensors in nats unless said otherwise."""

    loss: Tensor
    """weight · entropy_term + histogram_weight · histogram_term, with gradient."""
    entropy_term: Tensor
    """(H - centre)² in nats², with gradient, unweighted."""
    histogram_term: Tensor
    """KL, with gradient, unweighted."""
    hard_counts: Tensor
    """(9,) int64: how many of the 81 cells are in each state; no gradient."""
    hard_entropy: Tensor
    """Entropy of hard_counts, no gradient: the quantity of INV-4."""
    soft_entropy: Tensor
    """Entropy of the mean of the cells' distributions, no gradient."""


def seed_grid(seed: int) -> Tensor:
    """(81,) int64 states 0..8, from the seed project's 64-bit linear congruential generator, row by row."""
    states, s = [], seed
    for _ in range(CELLS):
        s = (s * 6364136223846793005 + 1442695040888963407) % 2**64
        states.append((s >> 33) % STATES)
    return torch.tensor(states)


def neighbourhoods() -> Tensor:
    """(81, 9) int64: the cells of the 3 x 3 neighbourhood of each cell on the torus, row by row."""
    cells = torch.arange(CELLS).view(SIDE, SIDE)
    shifts = [(i, j) for i in (1, 0, -1) for j in (1, 0, -1)]
    return torch.stack([cells.roll(shift, (0, 1)).flatten() for shift in shifts], dim=-1)


def near_equal_classes(counts: Sequence[int]) -> Tensor:
    """(vocab,) int64: a class 0..8 for every token, so that the classes have nearly equal total counts.

    Greedy: the most frequent token first, each into the lightest class so far. Within one token's count of
    equal.
    """
    mass = [0] * STATES
    classes = [0] * len(counts)
    for token in sorted(range(len(counts)), key=lambda t: (-counts[t], t)):
        lightest = mass.index(min(mass))
        classes[token] = lightest
        mass[lightest] += counts[token] + 1
    return torch.tensor(classes)


def distribution_entropy(p_K: Tensor) -> Tensor:
    """Entropy in nats of a distribution over the 9 states, by the proved formula, with gradient; 0-dim."""
    h: Tensor = entropy.entropy_nats(p_K.unbind(0), TORCH)
    return h


class NcaObjective(nn.Module):
    """hidden (B, T, d_model) and tokens (B, T) -> NcaOutput. About a millisecond, for any size.

    `token_classes` maps token -> class 0..8, shape (vocab,); default: token mod 9.
    """

    grid_CK: Tensor
    neighbours_C9: Tensor
    token_classes: Tensor

    def __init__(
        self, d_model: int, vocab: int, config: NcaConfig | None = None, token_classes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = NcaConfig() if config is None else config
        width = self.config.hidden
        self.summary = nn.Linear(d_model, width, bias=False)
        self.perception = nn.Linear(9 * STATES, width, bias=False)
        self.rule = nn.Linear(width, STATES, bias=False)
        self.state_bias = nn.Parameter(torch.linspace(TILT, -TILT, STATES))
        classes = torch.arange(vocab) % STATES if token_classes is None else token_classes
        grid = F.one_hot(seed_grid(self.config.seed), STATES).float()
        self.register_buffer("grid_CK", grid, persistent=False)
        self.register_buffer("neighbours_C9", neighbourhoods(), persistent=False)
        self.register_buffer("token_classes", classes, persistent=True)

    def forward(self, hidden_BTD: Tensor, tokens_BT: Tensor) -> NcaOutput:
        p_CK = self.evolve(F.layer_norm(hidden_BTD.mean((0, 1)), hidden_BTD.shape[-1:]))
        counts_K = F.one_hot(p_CK.detach().argmax(-1), STATES).sum(0)
        soft_K = p_CK.mean(0)
        soft = distribution_entropy(soft_K)
        hard = distribution_entropy(counts_K.double() / CELLS)
        straight_through = soft + (hard - soft).detach().float()
        entropy_term = (straight_through - CENTRE_NATS).square()
        histogram_term = self._histogram_kl(tokens_BT, soft_K)
        loss = self.config.weight * entropy_term + self.config.histogram_weight * histogram_term
        return NcaOutput(loss, entropy_term, histogram_term, counts_K, hard, soft.detach())

    def evolve(self, summary_D: Tensor) -> Tensor:
        """(81, 9): every cell's distribution over the states after the last step."""
        drive = self.summary(summary_D)
        p_CK = self.grid_CK
        for _ in range(self.config.steps):
            seen_CF = self.perception(p_CK[self.neighbours_C9].flatten(1))
            proposal_CK = self.rule((seen_CF * (1 + drive.tanh())).tanh())
            spread_CK = F.layer_norm(proposal_CK.t(), (CELLS,)).t()
            logits_CK = INERTIA * p_CK + REACH * spread_CK.tanh() + self.state_bias
            p_CK = (SHARPNESS * logits_CK).softmax(-1) * (1 - SMOOTHING) + SMOOTHING / STATES
        return p_CK

    def _histogram_kl(self, tokens_BT: Tensor, soft_K: Tensor) -> Tensor:
        target_K = torch.bincount(self.token_classes[tokens_BT.flatten()], minlength=STATES) / tokens_BT.numel()
        return torch.xlogy(target_K, target_K).sum() - (target_K * soft_K.log()).sum()
