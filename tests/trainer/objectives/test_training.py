"""The loss that is trained is the sum of its parts, with the gradient of each: a part that is detached is seen."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from karat.core.errors import ConfigError
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaConfig, JepaObjective
from karat.trainer.objectives.nca import NcaObjective
from karat.trainer.objectives.training import TrainingObjective, demand_reached

SHAPE = ModelConfig(vocab=40, d_model=16, n_layers=1, n_heads=2, context=24, gf16=False, streams=2)
JEPA = JepaConfig(enabled=True, warmup=0, width=16, heads=2, layers=1)


def whole() -> TrainingObjective:
    torch.manual_seed(3)
    model = Transformer(SHAPE)
    return TrainingObjective(model, NcaObjective(16, 40), JepaObjective(model, JEPA, steps=9, seed=1))


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(40, (3, 25), generator=torch.Generator().manual_seed(8))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(objective: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def test_the_gradient_of_the_total_is_that_of_every_term_by_its_weight() -> None:
    objective = whole()
    losses = objective(*batch(), 2)
    nca, jepa, own = losses.nca, losses.jepa, objective.nca
    assert nca is not None and jepa is not None and own is not None
    terms = [
        (1.0, losses.cross_entropy), (own.config.weight, nca.entropy_term),
        (own.config.histogram_weight, nca.histogram_term), (JEPA.weight, jepa.prediction_term), (JEPA.weight, jepa.penalty),
    ]  # fmt: skip
    parts = [(weight, gradients(objective, term)) for weight, term in terms]
    for weight, part in parts:
        assert weight > 0 and max(float(g.abs().max()) for g in part.values()) > 1e-6  # none of them is idle
    for name, gradient in gradients(objective, losses.total).items():
        torch.testing.assert_close(gradient, sum(weight * part[name] for weight, part in parts), rtol=1e-4, atol=1e-6)


def test_every_trainable_parameter_is_reached() -> None:
    objective = whole()
    objective(*batch(), 0).total.backward()
    demand_reached(objective)


@pytest.mark.parametrize(
    ("part", "missed"), [("nca", "nca.state_bias, nca.summary.weight"), ("jepa", "jepa.mask_embedding")]
)
def test_a_term_that_is_detached_is_named_by_what_it_no_longer_trains(part: str, missed: str) -> None:
    objective = whole()
    module = getattr(objective, part)
    honest = copy.copy(module.forward)
    module.forward = lambda *given: replace(honest(*given), loss=honest(*given).loss.detach())
    objective(*batch(), 0).total.backward()
    with pytest.raises(ConfigError, match=f"no gradient reaches {missed}"):
        demand_reached(objective)
