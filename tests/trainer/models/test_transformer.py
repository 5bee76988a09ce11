"""The model as a whole: first loss, causality, which parts are on, what it reports."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from karat.core.formulas import birkhoff
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer


def small(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{"vocab": 31, "d_model": 16, "n_heads": 2, "context": 12, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": 256, "d_model": 256, "n_heads": 4},
        {"vocab": 256, "d_model": 256, "n_heads": 4, "streams": 1, "qk_gain": 2.618, "n_layers": 6},
        {"vocab": 4096, "d_model": 512, "n_heads": 8, "n_layers": 1},
        {"vocab": 64, "d_model": 256, "n_heads": 4, "activation": "swiglu"},
    ],
)
def test_first_loss_is_the_logarithm_of_the_vocabulary(changes: dict[str, Any]) -> None:
    model = small(**changes)
    tokens = torch.randint(model.config.vocab, (8, 12))
    logits = model(tokens).logits_BTV
    targets = torch.randint(model.config.vocab, (8, 12))
    assert abs(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() - math.log(model.config.vocab)) < 0.1


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_no_position_sees_the_future(streams: int, activation: str) -> None:
    model = small(streams=streams, activation=activation)
    tokens = torch.randint(31, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 31
    before, after = model(tokens).logits_BTV, model(changed).logits_BTV
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min().item() > 1e-7  # and every later one sees the past


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_every_parameter_gets_a_gradient(streams: int, activation: str) -> None:
    model = small(streams=streams, activation=activation)
    tokens = torch.randint(31, (4, 13))
    F.cross_entropy(model(tokens[:, :-1]).logits_BTV.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


def test_head_is_tied_to_the_embedding() -> None:
    model = small()
    output = model(torch.randint(31, (2, 5)))
    assert torch.equal(output.logits_BTV, output.hidden_BTD @ model.embedding.weight.t())


def test_reports_mixing_and_spread() -> None:
    model = small(n_layers=3)
    output = model(torch.randint(31, (2, 5)))
    assert output.mixing_SNN is not None and output.mixing_SNN.shape == (6, 4, 4)
    assert output.mixing_SNN is model.last_mixing_SNN and not output.mixing_SNN.requires_grad
    assert max(birkhoff.residual(matrix) for matrix in output.mixing_SNN.tolist()) < 1e-6
    assert output.stream_spread is not None and output.stream_spread.ndim == 0
    assert float(output.stream_spread) > 0.01 and not output.stream_spread.requires_grad


def test_one_stream_is_the_plain_residual() -> None:
    model = small(streams=1)
    tokens = torch.randint(31, (2, 5))
    x = model.embedding(tokens)
    for sublayer in model.sublayers:
        x = x + sublayer(x)
    output = model(tokens)
    assert torch.equal(output.hidden_BTD, model.final_norm(x))
    assert output.mixing_SNN is None and output.stream_spread is None and model.last_mixing_SNN is None


def test_gf16_parameters_are_the_feedforward_weights() -> None:
    names = [name for name, _ in small(n_layers=1, activation="swiglu").gf16_parameters()]
    assert names == [f"sublayers.1.body.{part}.weight" for part in ("gate", "up", "down")]
    assert small(gf16=False).gf16_parameters() == []
    model = small(n_layers=1)
    assert dict(model.gf16_parameters()).items() <= dict(model.named_parameters()).items()


def test_gf16_changes_the_forward_pass() -> None:
    tokens = torch.randint(31, (2, 12))
    rounded, plain = small()(tokens).logits_BTV, small(gf16=False)(tokens).logits_BTV
    assert 0 < (rounded - plain).abs().max().item() < 1e-3


@pytest.mark.parametrize("shape", [(13,), (2, 13), (1, 2, 3)])
def test_tokens_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="context = 12"):
        small()(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("settings", [{"streams": 4}, {"streams": 2, "dynamic_streams": True}, {"streams": 1}])
def test_under_autocast_losses_are_near_and_streams_stay_in_the_precision_of_the_weights(
    settings: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab=16, d_model=8, n_layers=2, n_heads=2, context=8, **settings))
    tokens = torch.randint(16, (3, 8))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens)
    F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert (output.hidden_BTD - model(tokens).hidden_BTD).abs().max() < 0.05 * output.hidden_BTD.abs().max()
    if output.mixing_SNN is not None:
        assert output.mixing_SNN.dtype == torch.float32
        assert (output.mixing_SNN.sum(-1) - 1).abs().max() < 1e-6
