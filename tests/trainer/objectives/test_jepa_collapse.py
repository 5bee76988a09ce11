"""Collapse is told from health: constants and lines are flagged, features of an encoder are not; the seed's test is not one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaConfig, JepaObjective
from karat.trainer.objectives.jepa_collapse import RANK_FLOOR, STD_FLOOR, CollapseWatch, feature_spread, spread_penalty


def healthy(dimension: int, seed: int) -> Tensor:
    return torch.randn(500, dimension, generator=torch.Generator().manual_seed(seed))


def constant(dimension: int, seed: int) -> Tensor:
    """The same vector everywhere, and rounding noise."""
    return healthy(dimension, seed)[:1] + 1e-6 * healthy(dimension, seed + 1)


def line(dimension: int, seed: int) -> Tensor:
    """All features along one direction."""
    return torch.outer(healthy(1, seed)[:, 0], healthy(dimension, seed + 1)[0])


def flagged(features: Tensor) -> bool:
    return feature_spread(features).collapsed


def seeds_test(features: Tensor) -> bool:
    """The seed's: the variance within a unit vector is below 0.01, which is at most 1 / n for every vector."""
    unit = F.normalize(features, dim=-1)
    return bool(unit.var(-1, correction=0).mean() < 0.01)


def tells(detector: Callable[[Tensor], bool], dimension: int) -> bool:
    """Whether a detector flags what has collapsed and leaves alone what has not."""
    return all(
        detector(constant(dimension, s)) and detector(line(dimension, s)) and not detector(healthy(dimension, s))
        for s in range(5)
    )


@pytest.mark.parametrize("dimension", [16, 64, 101, 384])
def test_constants_and_lines_are_flagged_and_healthy_features_are_not(dimension: int) -> None:
    assert tells(flagged, dimension)


def test_the_seeds_test_is_true_of_every_vector_of_more_than_a_hundred_coordinates() -> None:
    assert all(seeds_test(features(n, s)) for n in (101, 384) for s in range(5) for features in (healthy, constant))
    assert not tells(seeds_test, 101) and not tells(seeds_test, 384)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_the_features_says_nothing(scale: float) -> None:
    assert not flagged(scale * healthy(64, 0)) or scale < 1e-2  # layer_norm's epsilon is 1e-5 on the variance
    assert flagged(scale * constant(64, 0))


def test_nan_and_zeros_are_flagged_with_what_was_seen() -> None:
    assert flagged(torch.full((10, 8), math.nan)) and flagged(torch.zeros(10, 8))
    spread = feature_spread(constant(64, 0))
    assert len(spread.reasons) >= 1 and f"required {STD_FLOOR:g}" in spread.reasons[0]
    assert any(f"required {RANK_FLOOR:g}" in reason for reason in feature_spread(line(64, 0)).reasons)
    assert feature_spread(healthy(64, 0)).reasons == ()


def test_the_numbers_are_those_of_the_definition() -> None:
    features = healthy(6, 3) @ healthy(6, 4)[:6]
    rows = (features - features.mean(1, keepdim=True)) / (features.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    covariance = torch.cov(rows.T, correction=0)
    spread = feature_spread(features)
    torch.testing.assert_close(spread.std, rows.std(0, correction=0).mean())
    torch.testing.assert_close(spread.least_std, rows.std(0, correction=0).min())
    off = covariance[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(spread.covariance, off.square().sum() / 6)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(spread.rank, eigenvalues.sum().square() / eigenvalues.square().sum(), rtol=1e-3, atol=0)
    hinge = (1 - (rows.var(0, correction=0) + 1e-4).sqrt()).relu().mean()
    torch.testing.assert_close(spread_penalty(features, 2.0, 3.0), 2 * hinge + 3 * off.square().sum() / 6)


def test_the_penalty_takes_features_out_of_a_collapse() -> None:
    features = constant(8, 0)[:64].clone().requires_grad_()
    assert flagged(features.detach())
    optimizer = torch.optim.Adam([features], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        spread_penalty(features, 1.0, 0.05).backward()
        assert features.grad is not None and bool(features.grad.isfinite().all())
        optimizer.step()
    spread = feature_spread(features.detach())
    assert not spread.collapsed and float(spread.std) > 0.5


def test_an_encoder_forced_to_constants_is_flagged_and_the_same_encoder_before_is_not() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2, context=32, streams=1, gf16=False))
    jepa = JepaObjective(model, JepaConfig(width=16, heads=2, layers=1), steps=10, seed=0)
    tokens = torch.randint(256, (4, 32))
    before = jepa(model, tokens, 0)
    assert not before.online.collapsed and not before.target.collapsed and not before.collapsed
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding.weight[:1].expand_as(model.embedding.weight))
        jepa.mask_embedding.copy_(model.embedding.weight[0])
    after = jepa(model, tokens, 0)
    assert after.online.collapsed and after.collapsed and not after.target.collapsed  # the target has not followed yet
    assert not any(value.requires_grad for value in vars(after.online).values())
    jepa.target.encoder.load_state_dict(model.state_dict())
    assert jepa(model, tokens, 0).target.collapsed


def test_the_watch_tells_a_collapse_that_lasts_and_no_dip() -> None:
    low, high = feature_spread(constant(16, 0)), feature_spread(healthy(16, 0))
    watch = CollapseWatch(warmup=5, patience=10)
    assert not any(watch.look(step, low) for step in range(15))  # judged from step 5 on, so 10 steps are over at 15
    assert watch.look(15, high, low) == low.reasons
    assert watch.look(16, high, high) == () and watch.look(17, low) == ()
    assert not any(watch.look(step, low) for step in range(18, 27)) and watch.look(27, low)
