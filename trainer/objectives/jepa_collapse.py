"""Whether features have collapsed: how much they differ from place to place, and in how many directions.

Features are layer-normalised first, so that their scale says nothing: over all coordinates, the variance between places
and the square of the mean sum to 1. Watched are the deviation per coordinate, the covariances off the diagonal
(VICReg: Bardes et al. 2022, arXiv 2105.04906), and the effective rank tr(C)² / |C|², between 1 and d. The seed asked
whether the variance within a vector of norm 1 is below 0.01, which it is for every vector of more than 100 coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STD_FLOOR = 0.1
"""Mean deviation per coordinate below which features say nothing of their place."""
RANK_FLOOR = 1.5
"""Effective rank below which all features lie along one line."""
SLACK = 1e-4
"""Added to a variance under the root of the penalty, whose gradient is infinite at 0 without it."""
TINY = 1e-20
PATIENCE = 100
"""Steps in a row below a floor that are a collapse. A sound run is below for some 20 steps at its start, while it learns
how frequent each token is and nothing else yet: its features deviate by 0.07 there (rate 0.004, width 64 and 256)."""


@dataclass(frozen=True)
class FeatureSpread:
    """0-dim tensors, no gradient."""

    std: Tensor
    """Mean over the coordinates of the deviation over places: 0 for constants, at most 1."""
    least_std: Tensor
    """That of the coordinate that varies least."""
    covariance: Tensor
    """Sum of the squared covariances off the diagonal, over d."""
    rank: Tensor
    """Effective rank of the covariance, 1 to d; 0 where nothing varies."""

    @property
    def collapsed(self) -> bool:
        """Whether a floor is passed; NaN counts as passed."""
        return bool(self.reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was seen and what is required, a sentence for each floor that is passed; empty when healthy."""
        std, rank = float(self.std), float(self.rank)
        found = []
        if not std >= STD_FLOOR:
            found.append(f"features deviate by {std:.3g} per coordinate from place to place, required {STD_FLOOR:g}")
        if not rank >= RANK_FLOOR:
            found.append(f"features have an effective rank of {rank:.3g}, required {RANK_FLOOR:g}")
        return tuple(found)


def _centred(features_RD: Tensor) -> Tensor:
    normalised = F.layer_norm(features_RD.float(), features_RD.shape[-1:])
    return normalised - normalised.mean(0)


def _off_diagonal(covariance_DD: Tensor) -> Tensor:
    """Sum of the squares off the diagonal, over d."""
    return (covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / len(covariance_DD)


@torch.no_grad()
def feature_spread(features_RD: Tensor) -> FeatureSpread:
    """What stands in FeatureSpread, of R >= 1 places and d coordinates."""
    x_RD = _centred(features_RD)
    covariance = x_RD.T @ x_RD / len(x_RD)
    variance_D = covariance.diagonal().clamp_min(0)
    std_D = variance_D.sqrt()
    rank = variance_D.sum().square() / covariance.square().sum().clamp_min(TINY)
    return FeatureSpread(std_D.mean(), std_D.amin(), _off_diagonal(covariance), rank)


def spread_penalty(features_RD: Tensor, variance_weight: float, covariance_weight: float) -> Tensor:
    """variance_weight · mean(max(0, 1 - std)) + covariance_weight · off-diagonal; 0-dim, with gradient."""
    x_RD = _centred(features_RD)
    std_D = (x_RD.square().mean(0) + SLACK).sqrt()
    covariance = x_RD.T @ x_RD / len(x_RD)
    return variance_weight * (1 - std_D).relu().mean() + covariance_weight * _off_diagonal(covariance)


class CollapseWatch:
    """Tells a collapse from the dip that a sound run goes through; judged from step `warmup` on.

    It has no state worth a checkpoint: after a resume a collapse is told at most PATIENCE steps later.
    """

    def __init__(self, warmup: int, patience: int = PATIENCE) -> None:
        self.warmup, self.patience = warmup, patience
        self.since: int | None = None

    def look(self, step: int, *spreads: FeatureSpread) -> tuple[str, ...]:
        """The reasons, when at every look of the last `patience` steps one of `spreads` was below a floor; else empty."""
        reasons = tuple(reason for spread in spreads for reason in spread.reasons)
        if not reasons or step < self.warmup:
            self.since = None
            return ()
        self.since = step if self.since is None else self.since
        return reasons if step - self.since >= self.patience else ()
