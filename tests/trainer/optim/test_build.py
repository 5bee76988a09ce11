"""Weight decay acts on matrices and on nothing else, and no parameter is forgotten or held twice."""

import pytest
import torch

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.nca import NcaObjective
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer


@pytest.fixture
def objective() -> TrainingObjective:
    model = Transformer(ModelConfig(vocab=16, d_model=8, n_layers=2, n_heads=2, context=4))
    return TrainingObjective(model, NcaObjective(8, 16))


def test_every_parameter_is_held_exactly_once(objective: TrainingObjective) -> None:
    held = [id(p) for group in build_optimizer(objective, Rates(lr=0.1)).param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in objective.parameters())
    assert len(set(held)) == len(held)


def test_norms_gates_and_mixing_logits_do_not_decay(objective: TrainingObjective) -> None:
    optimizer = build_optimizer(objective, Rates(lr=0.1, weight_decay=0.5))
    names = {id(p): name for name, p in objective.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    undecayed = {name for name, wd in decay.items() if wd == 0}
    assert undecayed == {
        *(f"model.sublayers.{i}.norm.gain" for i in range(4)),
        "model.final_norm.gain",
        *(f"model.residual.{part}_logits" for part in ("mix", "pre", "post")),
        "nca.state_bias",
    }
    assert all(wd == 0.5 for name, wd in decay.items() if name not in undecayed)


def test_decay_moves_matrices_when_the_gradient_is_zero(objective: TrainingObjective) -> None:
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    build_optimizer(objective, Rates(lr=0.1, weight_decay=0.5)).step()
    after = dict(objective.named_parameters())
    torch.testing.assert_close(after["model.embedding.weight"], before["model.embedding.weight"] * 0.95)
    assert torch.equal(after["model.residual.mix_logits"], before["model.residual.mix_logits"])
    assert torch.equal(after["model.final_norm.gain"], before["model.final_norm.gain"])


def test_a_frozen_parameter_is_left_out_and_the_step_is_fused(objective: TrainingObjective) -> None:
    objective.model.embedding.weight.requires_grad_(False)
    optimizer = build_optimizer(objective, Rates(lr=0.004, betas=(0.8, 0.9)))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(objective.model.embedding.weight) not in held
    assert all((g["fused"], g["lr"], g["betas"]) == (True, 0.004, (0.8, 0.9)) for g in optimizer.param_groups)


@pytest.mark.parametrize("name", ["lion", "muon+lion", "adamw", "muon"])
def test_every_first_order_optimizer_has_the_declared_averages(name: str, objective: TrainingObjective) -> None:
    groups = build_optimizer(objective, Rates(name=name, betas=(0.7, 0.8))).param_groups
    assert {group["betas"] for group in groups if group["name"] in ("decayed", "undecayed")} == {(0.7, 0.8)}
