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
    read: list[torch.dtype] = []
    for sublayer in model.sublayers:
        sublayer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens)
    assert read == [torch.float32] * 4  # the mixture of the streams that a sublayer reads, too
    F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert (output.hidden_BTD - model(tokens).hidden_BTD).abs().max() < 0.05 * output.hidden_BTD.abs().max()
    if output.mixing_SNN is not None:
        assert output.mixing_SNN.dtype == torch.float32
        assert (output.mixing_SNN.sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"start": "gpt"}, {"activation": "swiglu", "streams": 1}])
def test_where_outputs_start_at_zero_a_sublayer_adds_nothing_and_every_other_matrix_is_drawn(
    settings: dict[str, Any],
) -> None:
    model, x = small(zero_outputs=True, gf16=False, **settings), torch.randn(2, 5, 16)
    assert all(not bool(sublayer(x).any()) for sublayer in model.sublayers)
    still = [name for name, p in model.named_parameters() if "sublayers" in name and not bool(p.any())]
    assert still == [f"sublayers.{i}.body.{'down' if i % 2 else 'out'}.weight" for i in range(4)]
    drawn = small(gf16=False, **settings)
    assert all(bool(sublayer(x).any()) for sublayer in drawn.sublayers)


@pytest.mark.parametrize(
    ("start", "reads", "attention_writes", "feedforward_writes"),
    [("scaled", 1.6 / 8, 1 / 8 / 6**0.5, 1 / 16 / 6**0.5), ("gpt", 0.02, 0.02 / 6**0.5, 0.02 / 6**0.5)],
)
def test_matrices_start_as_wide_as_declared(
    start: str, reads: float, attention_writes: float, feedforward_writes: float
) -> None:
    """Of width 64 and 256 units, three layers deep: what writes to the stream is narrower by sqrt(6)."""
    model = small(d_model=64, n_layers=3, start=start)
    declared = {"qkv": reads, "up": reads, "out": attention_writes, "down": feedforward_writes}
    for name, weight in model.named_parameters():
        if name.startswith("sublayers") and weight.ndim == 2:
            assert float(weight.detach().std()) == pytest.approx(declared[name.split(".")[-2]], rel=0.05), name


@pytest.mark.parametrize("start", ["scaled", "gpt"])
def test_the_stream_starts_with_the_same_size_at_any_depth(start: str) -> None:
    tokens = torch.randint(31, (8, 12))
    added = []
    for depth in (1, 8):
        model = small(d_model=64, n_layers=depth, start=start, streams=1)
        embedded, x = model.embedding(tokens), model.embedding(tokens)
        for sublayer in model.sublayers:
            x = x + sublayer(x)
        added.append(float((x - embedded).detach().norm()))
    assert added[1] == pytest.approx(added[0], rel=0.25)


def test_dropout_leaves_out_its_share_of_each_sublayers_output_while_training_alone() -> None:
    model, x = small(dropout=0.25), torch.randn(8, 12, 16)
    plain = small()
    for sublayer, whole in zip(model.sublayers, plain.sublayers, strict=True):
        kept, expected = sublayer(x), whole(x)
        out = kept == 0
        assert 0.2 < out.float().mean() < 0.3
        torch.testing.assert_close(kept[~out], expected[~out] / 0.75)
    tokens = torch.randint(31, (2, 12))
    assert not torch.equal(model(tokens).hidden_BTD, model(tokens).hidden_BTD)
    assert torch.equal(model.eval()(tokens).hidden_BTD, plain.eval()(tokens).hidden_BTD)
