"""Muon's rule is torch's, its iteration orthogonalises, packed maps are taken apart, and it never sees an embedding."""

import copy
from typing import Any

import pytest
import torch

from karat.core.errors import ConfigError
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.nca import NcaObjective
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim import build
from karat.trainer.optim.build import Rates, build_optimizer
from karat.trainer.optim.muon import Muon, orthogonalised
from karat.trainer.optim.roles import Role, demand_split, roles
from karat.trainer.optim.together import Together


def objective(**settings: Any) -> TrainingObjective:
    torch.manual_seed(0)
    shape = {"vocab": 16, "d_model": 8, "n_layers": 2, "n_heads": 2, "context": 4, **settings}
    return TrainingObjective(Transformer(ModelConfig(**shape)), NcaObjective(8, 16))


def with_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_rule_is_that_of_torch(weight_decay: float) -> None:
    """To what bfloat16 leaves of the iteration, which torch always takes in it: over five steps, tall and wide matrices."""
    torch.manual_seed(1)
    shapes = [(32, 16), (16, 32), (16, 32), (24, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.05, "weight_decay": weight_decay, "ns_steps": 5}
    pair = [Muon(ours, ns_dtype=torch.bfloat16, **options), torch.optim.Muon(theirs, **options)]
    start = [p.detach().clone() for p in ours]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() <= 0.03 * (b - before).norm()


@pytest.mark.parametrize(("steps", "least"), [(3, 0.02), (5, 0.002)])
def test_singular_values_end_near_one_and_directions_stay(steps: int, least: float) -> None:
    torch.manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0] for _ in range(2))
    values = torch.logspace(-4, 0, 40, dtype=torch.float64)
    values /= values.norm()
    made = u.t() @ orthogonalised(7 * ((u * values) @ v)[None], steps, torch.float64)[0] @ v.t()
    ends = made.diagonal()
    assert (made - ends.diag()).abs().max() < 1e-9
    assert ends[values >= least].min() > 0.67 and ends.max() < 1.21
    assert ends[values < least / 4].max() < 0.67


def test_float32_and_bfloat16_agree_to_what_bfloat16_holds() -> None:
    torch.manual_seed(3)
    matrices = torch.randn(3, 16, 32)
    wide, narrow = orthogonalised(matrices, 5), orthogonalised(matrices, 5, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and wide.dtype == torch.float32
    assert (wide - narrow).norm() < 0.03 * wide.norm()
    assert not torch.equal(wide, narrow.float())


def test_packed_maps_are_orthogonalised_one_by_one() -> None:
    packed = torch.nn.Parameter(torch.zeros(24, 8))
    packed.grad = torch.randn(24, 8) * torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(8)[:, None]
    apart = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    for part, gradient in zip(apart, packed.grad.split(8), strict=True):
        part.grad = gradient.clone()
    Muon([{"params": [packed], "blocks": 3}], lr=1.0).step()
    Muon(apart, lr=1.0).step()
    torch.testing.assert_close(packed.detach(), torch.cat([p.detach() for p in apart]))
    whole = torch.nn.Parameter(torch.zeros(24, 8))
    whole.grad = packed.grad.clone()
    Muon([whole], lr=1.0).step()
    assert (whole - packed).norm() > 0.5 * packed.norm()


def test_a_gradient_of_zeros_moves_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([parameter], lr=1.0).step()
    assert torch.equal(parameter, torch.ones(4, 6))


def test_a_vector_and_blocks_that_do_not_divide_are_refused() -> None:
    for parameter, blocks in ((torch.zeros(4), 1), (torch.zeros(4, 4), 3)):
        with pytest.raises(ValueError, match="matrices of"):
            Muon([{"params": [torch.nn.Parameter(parameter)], "blocks": blocks}])


@pytest.mark.parametrize("name", ["muon", "muon+lion"])
@pytest.mark.parametrize("settings", [{}, {"positions": "learned", "streams": 1, "activation": "swiglu"},
                                      {"dynamic_streams": True, "streams": 2}])  # fmt: skip
def test_muon_has_the_matrices_between_hidden_states_and_nothing_else(name: str, settings: dict[str, Any]) -> None:
    model = objective(**settings)
    optimizer = build_optimizer(model, Rates(name=name))
    assert isinstance(optimizer, Together)
    names = {id(p): dotted for dotted, p in model.named_parameters()}
    muon = {names[id(p)] for group in optimizer.parts[0].param_groups for p in group["params"]}
    rest = {names[id(p)] for group in optimizer.parts[1].param_groups for p in group["params"]}
    assert muon | rest == set(names.values()) and not muon & rest
    assert "model.embedding.weight" in rest and "model.positions_TD" not in muon
    assert all(dotted.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight", "gate.weight"))
               for dotted in muon if dotted.startswith("model."))  # fmt: skip
    assert len([dotted for dotted in muon if dotted.startswith("model.")]) == (10 if "activation" in settings else 8)
    assert {g["peak"] for g in optimizer.parts[0].param_groups} == {0.02}
    assert {g["peak"] for g in optimizer.parts[1].param_groups} == {0.004}


def test_a_split_that_gives_muon_an_embedding_is_refused_by_name() -> None:
    """Groups made by shape, as is often done, the embedding and the streams' logits are matrices."""
    model = objective()
    by_shape = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    with pytest.raises(ConfigError, match=r"Muon would orthogonalise: model\.embedding\.weight"):
        demand_split(model, {"muon": by_shape, "rest": rest})
    with pytest.raises(ConfigError, match=r"no optimizer moves: model\.embedding\.weight"):
        demand_split(model, {"rest": [p for p in model.parameters() if p is not model.model.embedding.weight]})
    with pytest.raises(ConfigError, match=r"moved twice: model\.embedding\.weight"):
        demand_split(model, {"rest": [*model.parameters(), model.model.embedding.weight]})
    with pytest.raises(ConfigError, match="1 parameters are not the model's"):
        demand_split(model, {"rest": [*model.parameters(), torch.nn.Parameter(torch.zeros(1))]})


@pytest.mark.parametrize(
    ("name", "role", "message"),
    [
        ("muon", Role.MATRIX, "Muon would orthogonalise: model.embedding.weight"),
        ("muon", None, "no optimizer moves: model.embedding.weight"),
        ("adamw", None, "no optimizer moves: model.embedding.weight"),
    ],
)
def test_groups_that_were_made_wrong_are_refused_before_a_step(
    name: str, role: Role | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage of what makes the groups: what judges them finds the roles out anew."""

    def mistaken(model: torch.nn.Module) -> dict[str, Role]:
        kinds = roles(model)
        del kinds["model.embedding.weight"]
        return kinds if role is None else kinds | {"model.embedding.weight": role}

    monkeypatch.setattr(build, "roles", mistaken)
    with pytest.raises(ConfigError, match=message):
        build_optimizer(objective(), Rates(name=name))


def test_the_built_optimizer_takes_queries_keys_and_values_apart() -> None:
    model = objective()
    packed = model.model.attentions()[0].qkv.weight
    apart = [torch.nn.Parameter(part.clone()) for part in packed.detach().split(8)]
    optimizer = build_optimizer(model, Rates(name="muon", matrix_lr=0.5, weight_decay=0.0))
    with_gradients(model, 4)
    assert packed.grad is not None
    packed.grad *= torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(8)[:, None]
    for part, gradient in zip(apart, packed.grad.split(8), strict=True):
        part.grad = gradient.clone()
    optimizer.step()
    Muon(apart, lr=0.5).step()
    torch.testing.assert_close(packed.detach(), torch.cat([part.detach() for part in apart]))


def test_every_parameter_has_one_role() -> None:
    kinds = roles(objective(context_features=2))
    assert kinds["model.features.tables_NVD"] is Role.EMBEDDING and kinds["model.features.weights_N"] is Role.SCALAR
    kinds = roles(objective(positions="learned"))
    assert set(kinds) == {dotted for dotted, _ in objective(positions="learned").named_parameters()}
    assert kinds["model.positions_TD"] is kinds["model.embedding.weight"] is Role.EMBEDDING
    assert kinds["model.residual.mix_logits"] is kinds["model.final_norm.gain"] is Role.SCALAR


@pytest.mark.parametrize("name", ["muon", "muon+lion", "lion"])
def test_state_and_rates_travel_and_the_next_steps_are_equal_bit_for_bit(name: str) -> None:
    first, second = objective(), objective()
    optimizers = [build_optimizer(model, Rates(name=name)) for model in (first, second)]
    with_gradients(first, 1)
    for group in optimizers[0].param_groups:
        group["lr"] = group["peak"] / 3
    optimizers[0].step()
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert [g["lr"] for g in optimizers[1].param_groups] == [g["lr"] for g in optimizers[0].param_groups]
    for model, optimizer in zip((first, second), optimizers, strict=True):
        with_gradients(model, 2)
        optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_set_on_the_whole_is_the_parts() -> None:
    model = objective()
    optimizer = build_optimizer(model, Rates(name="muon"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    with_gradients(model, 3)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
