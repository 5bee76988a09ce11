"""The automaton: its gradient reaches the transformer, its entropy is the grid's, collapse is seen."""

import math

import pytest
import torch
import torch.nn.functional as F

from karat.core.formulas import entropy
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.nca import (
    BAND_NATS,
    CENTRE_NATS,
    NcaConfig,
    NcaObjective,
    near_equal_classes,
    neighbourhoods,
    seed_grid,
)
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer


def objective(seed: int = 0) -> TrainingObjective:
    torch.manual_seed(seed)
    config = ModelConfig(vocab=256, d_model=16, n_layers=1, n_heads=2, context=12)
    return TrainingObjective(Transformer(config), NcaObjective(16, 256))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.frombuffer(bytearray(b"import torch\nfrom karat import watch, guard\n" * 9), dtype=torch.uint8).long()
    windows = text[: 13 * 20].view(20, 13)
    return windows[:, :-1], windows[:, 1:]


def test_the_entropy_term_alone_reaches_embedding_and_attention() -> None:
    both = objective()
    nca = both(*batch()).nca
    assert nca is not None
    assert BAND_NATS[0] < float(nca.hard_entropy) < BAND_NATS[1]  # inside the band, where a hinge would be flat
    nca.entropy_term.backward()
    for name in ("embedding.weight", "sublayers.0.body.qkv.weight", "sublayers.0.body.out.weight"):
        gradient = both.model.get_parameter(name).grad
        assert gradient is not None and bool(gradient.isfinite().all()), name
        assert float(gradient.abs().max()) > 1e-9, name


def test_entropy_is_that_of_the_hard_grid() -> None:
    both = objective()
    nca = both(*batch()).nca
    assert nca is not None
    assert nca.hard_counts.shape == (9,) and int(nca.hard_counts.sum()) == 81
    assert float(nca.hard_entropy) == pytest.approx(entropy.entropy_of_counts_nats(nca.hard_counts.tolist()), abs=1e-12)
    assert nca.entropy_term.item() == pytest.approx((float(nca.hard_entropy) - CENTRE_NATS) ** 2, rel=1e-5)
    assert abs(float(nca.soft_entropy) - float(nca.hard_entropy)) < 0.2


def test_a_large_state_bias_collapses_the_grid_with_finite_gradients() -> None:
    both = objective()
    assert both.nca is not None
    with torch.no_grad():
        both.nca.state_bias[4] = 1e4
    losses = both(*batch())
    assert losses.nca is not None
    assert float(losses.nca.hard_entropy) == 0.0
    assert losses.nca.hard_counts.tolist() == [0, 0, 0, 0, 81, 0, 0, 0, 0]
    losses.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in both.parameters() if p.grad is not None)


def test_entropy_gradient_is_that_of_the_soft_entropy() -> None:
    torch.manual_seed(0)
    nca = NcaObjective(8, 256)
    hidden, tokens = torch.randn(2, 3, 8), torch.randint(256, (2, 3))
    output = nca(hidden, tokens)
    (gradient,) = torch.autograd.grad(output.entropy_term, nca.state_bias)
    p_K = nca.evolve(F.layer_norm(hidden.mean((0, 1)), (8,))).mean(0)
    soft = -(p_K * p_K.log()).sum()
    (soft_gradient,) = torch.autograd.grad(soft, nca.state_bias)
    torch.testing.assert_close(gradient, 2 * (output.hard_entropy.float() - CENTRE_NATS) * soft_gradient)


def test_histogram_term_is_the_divergence_from_the_batch_classes() -> None:
    nca = NcaObjective(8, 256)
    tokens = torch.tensor([[0, 9, 1, 2]])  # classes 0, 0, 1, 2
    hidden = torch.randn(1, 4, 8)
    p_K = nca.evolve(F.layer_norm(hidden.mean((0, 1)), (8,))).mean(0)
    target = torch.tensor([0.5, 0.25, 0.25])
    expected = (target * (target / p_K[:3]).log()).sum()
    torch.testing.assert_close(nca(hidden, tokens).histogram_term, expected)


def test_seed_grid_is_the_seed_projects_generator() -> None:
    s = 9 * 6364136223846793005 + 1442695040888963407
    assert int(seed_grid(9)[0]) == (s % 2**64 >> 33) % 9
    assert seed_grid(9).shape == (81,) and not torch.equal(seed_grid(9), seed_grid(10))
    assert set(seed_grid(9).tolist()) == set(range(9))


def test_neighbourhoods_wrap_around_the_torus() -> None:
    cells = neighbourhoods()
    assert cells.shape == (81, 9)
    assert sorted(cells[0].tolist()) == sorted([0, 1, 8, 9, 10, 17, 72, 73, 80])
    assert cells[40].tolist() == [30, 31, 32, 39, 40, 41, 48, 49, 50]


def test_near_equal_classes_balance_the_counts() -> None:
    counts = [0] * 200 + [7, 5, 100, 3, 40, 41, 42, 90, 12, 60, 61, 80] * 4
    classes = near_equal_classes(counts)
    mass = torch.zeros(9).scatter_add_(0, classes, torch.tensor(counts).float())
    assert classes.shape == (248,) and float(mass.max() - mass.min()) <= max(counts)
    assert float(mass.max()) < 1.1 * float(mass.mean())


def test_tokens_that_were_never_seen_are_spread_over_the_classes() -> None:
    assert near_equal_classes([0] * 18).bincount(minlength=9).tolist() == [2] * 9
    assert near_equal_classes([100, *[0] * 16])[1:].bincount(minlength=9).tolist() == [0, *[2] * 8]


def test_weights_scale_the_loss() -> None:
    torch.manual_seed(0)
    nca = NcaObjective(8, 256, NcaConfig(weight=3.0, histogram_weight=2.0))
    output = nca(torch.randn(1, 4, 8), torch.randint(256, (1, 4)))
    torch.testing.assert_close(output.loss, 3 * output.entropy_term + 2 * output.histogram_term)


@pytest.mark.parametrize("lr", [0.0026, 0.0065])
def test_training_keeps_the_grid_in_the_band_and_moves_it_to_the_centre(lr: float) -> None:
    both = objective(seed=3)
    optimizer = build_optimizer(both, Rates(lr=lr))
    seen = []
    for _ in range(120):
        losses = both(*batch())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        assert losses.nca is not None
        seen.append(float(losses.nca.hard_entropy))
    assert all(BAND_NATS[0] + 0.1 < h < BAND_NATS[1] for h in seen)
    assert abs(seen[-1] - CENTRE_NATS) < 0.15
    assert math.isfinite(losses.total.item()) and losses.cross_entropy.item() < math.log(256) - 1


def test_without_the_automaton_the_total_is_the_cross_entropy() -> None:
    both = TrainingObjective(objective().model)
    losses = both(*batch())
    assert losses.nca is None and losses.total is losses.cross_entropy
