"""The budget of T-JEPA: the preset as it runs, what each line is of, and that a pass too many or too few is seen."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from torch import Tensor

from karat.trainer.budget import measure
from karat.trainer.budget.activations import passing, saved
from karat.trainer.budget.checks import checks
from karat.trainer.budget.formulas import (
    backward_flops,
    forward_flops,
    lasting,
    model_parameters,
    parameters,
    symbols,
    trained_by_muon,
)
from karat.trainer.budget.measure import Subject
from karat.trainer.budget.terms import Term, total
from karat.trainer.config_file import read_config
from karat.trainer.models.transformer import Output, Transformer
from karat.trainer.objectives import jepa as objective
from karat.trainer.objectives.jepa_target import TargetEncoder
from karat.trainer.optim.roles import Role, roles

ODD = (
    "batch_size=3", "model.context=20", "model.d_model=64", "model.n_layers=1", "model.streams=1", "model.gf16=false",
    "model.nca=false", "jepa.enabled=true", "jepa.ratio=0.55", "jepa.span_low=2", "jepa.span_high=4", "jepa.width=30",
    "jepa.heads=5", "jepa.layers=3",
)  # fmt: skip


def by_part(lines: list[Term]) -> dict[str, int]:
    return {line.part: line.value for line in lines}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tjepa", None])
def test_parameters_operations_and_saved_bytes_are_exactly_those_of_a_step(name: str | None, precision: str) -> None:
    settings = [f"precision={precision}", *(() if name else ODD)]
    found = checks(config := read_config(None, settings, preset=name), measure.measure(config))
    assert config.jepa.enabled and len(found) == 5
    assert all(check.measured == check.printed > 0 for check in found[:4]), found
    assert 0.94 < found[4].measured / found[4].printed < 1.05


def test_the_lines_are_of_what_they_name() -> None:
    config = read_config(None, [*ODD, "optim.name=muon"])
    subject, at = Subject(config), symbols(config)
    jepa = subject.objective.jepa
    assert jepa is not None
    assert set(jepa.masks(subject.tokens, 7).sum(1).tolist()) == {at["M"]} and at["M"] + at["U"] == at["T"]
    lines = by_part(parameters(config))
    vectors = [jepa.predictor.query, jepa.predictor.norm.weight]
    vectors += [
        norm.weight for block in jepa.predictor.blocks for norm in (block.attention_norm, block.feedforward_norm)
    ]
    assert lines["T-JEPA: mask vector"] == jepa.mask_embedding.numel()
    assert lines["T-JEPA: predictor's query and norms"] == sum(vector.numel() for vector in vectors)
    of_predictor = sum(parameter.numel() for parameter in jepa.predictor.parameters())
    assert of_predictor == total(parameters(config)) - total(model_parameters(config)) - jepa.mask_embedding.numel()
    named = dict(subject.objective.named_parameters())
    matrices = [named[n].numel() for n, role in roles(subject.objective).items() if role in (Role.MATRIX, Role.PACKED)]
    assert total(trained_by_muon(config)) == sum(matrices)
    held = by_part(lasting(config))
    assert held["T-JEPA: target's weights"] == sum(p.nbytes for p in jepa.target.encoder.parameters())
    scratch = [tensor.nbytes for pair in jepa.target._average._scratch.values() for tensor in pair]
    assert held["T-JEPA: target's scratch, two of each weight"] == sum(scratch)
    assert held["weights"] == held["gradients"] == 4 * total(parameters(config))


def test_without_a_penalty_its_products_and_arrays_are_not_printed() -> None:
    with_one = read_config(None, [*ODD, "jepa.variance_weight=0.0"])
    without = read_config(None, [*ODD, "jepa.variance_weight=0.0", "jepa.covariance_weight=0.0"])
    at = symbols(without)
    covariance = 2 * at["B"] * at["U"] * at["d"] ** 2
    assert total(forward_flops(with_one)) - total(forward_flops(without)) == covariance
    assert total(backward_flops(with_one)) - total(backward_flops(without)) == 2 * covariance
    assert "T-JEPA: penalty" in by_part(saved(with_one)) and "T-JEPA: penalty" not in by_part(saved(without))


def test_the_target_is_held_and_compared_but_has_no_gradient_and_no_moments() -> None:
    config = read_config(None, [*ODD, "ema.enabled=false"])
    count, own = total(parameters(config)), total(model_parameters(config))
    assert total(lasting(config)) == 4 * 4 * count + 3 * 4 * own
    assert by_part(passing(config)["average"])["averages before, and comparisons"] > 4 * own
    assert "average" not in passing(read_config(None, [*ODD, "ema.enabled=false", "jepa.enabled=false"]))


def off(*settings: str) -> set[str]:
    config = read_config(None, [*ODD, *settings])
    return {check.name for check in checks(config, measure.measure(config)) if not check.ok}


def test_a_target_with_gradient_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def learning(self: TargetEncoder, tokens_BT: Tensor) -> Tensor:
        hidden: Tensor = self.encoder.requires_grad_()(tokens_BT).hidden_BTD
        return hidden

    assert off() == set()
    monkeypatch.setattr(TargetEncoder, "forward", learning)
    assert {"backward pass", "saved for backward"} <= off()


def test_a_head_that_runs_on_the_masked_text_too_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_logits(model: Transformer, tokens_BT: Tensor, *arguments: Tensor) -> Tensor:
        hidden_BTD = plain(model, tokens_BT, *arguments)
        return hidden_BTD + 0 * Output(hidden_BTD, model.embedding.weight, None, None).logits_BTV.mean()

    plain = objective.masked_features
    monkeypatch.setattr(objective, "masked_features", with_logits)
    assert {"forward pass", "backward pass"} <= off()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_an_earlier_model_left_is_not_released_in_a_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objective, target and its decay refer to each other: only the collector lets go of them."""

    class Collecting(Subject):
        def step(self, number: int) -> None:
            gc.collect()
            super().step(number)

    config = read_config(None, ODD)
    first = measure.measure(config).peak
    monkeypatch.setattr(measure, "Subject", Collecting)
    assert measure.measure(config).peak == pytest.approx(first, rel=0.001)
