"""The objective: its gradient reaches the encoder, its predictor sees no hidden token, its loss is what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from karat.core.errors import ConfigError
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaConfig, JepaObjective, masked_features
from karat.trainer.objectives.nca import NcaObjective
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer

PLAIN: dict[str, Any] = {"streams": 1, "gf16": False}
CONFIG = JepaConfig(width=16, heads=2, layers=2, warmup=0, variance_weight=0.0, covariance_weight=0.0)


def made(config: JepaConfig = CONFIG, *, steps: int = 50, **shape: Any) -> tuple[Transformer, JepaObjective]:
    torch.manual_seed(0)
    base = {"vocab": 64, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 32, **PLAIN, **shape}
    model = Transformer(ModelConfig(**base))
    return model, JepaObjective(model, config, steps=steps, seed=3)


def text(low: int = 8, high: int = 40, rows: int = 4) -> Tensor:
    return torch.randint(low, high, (rows, 32), generator=torch.Generator().manual_seed(5))


def reached(module: nn.Module) -> set[str]:
    """Names of the parameters with a finite gradient that is not zero everywhere."""
    return {
        name
        for name, weight in module.named_parameters()
        if weight.grad is not None and bool(weight.grad.isfinite().all()) and float(weight.grad.abs().max()) > 0
    }


@pytest.mark.parametrize("shape", [PLAIN, {"streams": 4, "gf16": True}, {**PLAIN, "activation": "swiglu"}])
def test_the_gradient_reaches_all_of_the_encoder_and_predictor_and_nothing_else(shape: dict[str, Any]) -> None:
    model, jepa = made(**shape)
    both = TrainingObjective(model, NcaObjective(16, 64))
    jepa(model, text(), 0).loss.backward()
    trained = {name for name, _ in jepa.named_parameters() if not name.startswith("target.")}
    assert {
        "mask_embedding",
        "predictor.query",
        "predictor.blocks.1.key_value.weight",
        "predictor.out.weight",
    } <= trained
    assert reached(model) == {name for name, _ in model.named_parameters()}
    assert reached(jepa) == trained
    assert all(weight.grad is None and not weight.requires_grad for weight in jepa.target.parameters())
    assert both.nca is not None and all(weight.grad is None for weight in both.nca.parameters())


def test_the_head_gets_no_gradient_and_the_embedding_only_where_a_token_is_visible() -> None:
    model, jepa = made()
    tokens = text()
    jepa(model, tokens, 0).loss.backward()
    rows = model.embedding.weight.grad
    assert rows is not None
    seen = torch.zeros(64, dtype=torch.bool)
    seen[tokens[~jepa.masks(tokens, 0)]] = True
    assert not seen[:8].any() and bool(seen.any())
    assert torch.equal(rows.abs().amax(1) > 0, seen)  # the tied head would move all 64 rows
    logits_only, _ = made()
    F.cross_entropy(logits_only(tokens).logits_BTV.flatten(0, 1), tokens.flatten()).backward()
    assert logits_only.embedding.weight.grad is not None
    assert bool((logits_only.embedding.weight.grad.abs().amax(1) > 0).all())


def reads_masked_tokens(predict: Callable[[Tensor], Tensor], tokens: Tensor, mask: Tensor) -> bool:
    """Whether other tokens at the masked places change a bit of the predictions: sixteen other fillings tried."""
    first = predict(tokens)
    fillings = (torch.randint_like(tokens, 64) for _ in range(16))
    return any(not torch.equal(predict(torch.where(mask, other, tokens)), first) for other in fillings)


def places(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 1].view(len(mask), -1)


def at(features: Tensor, where: Tensor) -> Tensor:
    return features.gather(1, where[..., None].expand(-1, -1, features.shape[-1]))


@torch.no_grad()
def test_predictions_see_no_masked_token() -> None:
    model, jepa = made(streams=4)
    tokens = text()
    for step in range(3):
        mask = jepa.masks(tokens, step)
        assert not reads_masked_tokens(lambda t, m=mask: jepa.predict(model, t, m).predicted_BMD, tokens, mask)


@torch.no_grad()
def test_a_predictor_that_reads_the_target_or_an_unmasked_encoder_is_found_out() -> None:
    model, jepa = made()
    tokens = text()
    mask = jepa.masks(tokens, 0)
    masked, visible = places(mask), places(~mask)

    def keys_of_the_target(t: Tensor) -> Tensor:  # the seed's: K and V are the target's
        out: Tensor = jepa.predictor(masked, masked, at(jepa.target(t), masked))
        return out

    def unmasked(t: Tensor) -> Tensor:  # visible places right of a span have read it
        out: Tensor = jepa.predictor(masked, visible, at(model(t).hidden_BTD, visible))
        return out

    assert reads_masked_tokens(keys_of_the_target, tokens, mask)
    assert reads_masked_tokens(unmasked, tokens, mask)


@torch.no_grad()
def test_predictions_read_visible_tokens_on_both_sides() -> None:
    model, jepa = made()
    tokens = text(rows=1)
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[0, 12:16] = True
    first = jepa.predict(model, tokens, mask).predicted_BMD
    for place in (0, 11, 16, 31):
        other = tokens.clone()
        other[0, place] += 1
        assert not torch.equal(jepa.predict(model, other, mask).predicted_BMD, first), place
    assert not torch.equal(first[0, 0], first[0, 1])  # places are told apart


@torch.no_grad()
def test_the_loss_is_the_squared_error_to_the_normalised_target_features() -> None:
    model, jepa = made()
    tokens = text()
    output = jepa(model, tokens, 4)
    mask = jepa.masks(tokens, 4)
    whole = model(tokens).hidden_BTD  # the target starts as a copy
    target = ((whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())[mask]
    predicted = jepa.predict(model, tokens, mask).predicted_BMD.flatten(0, 1)
    expected = (predicted - target).square().mean()
    torch.testing.assert_close(output.prediction_term, expected)
    torch.testing.assert_close(output.loss, 0.25 * expected)
    constant = (target - target.mean(0)).square().mean()
    torch.testing.assert_close(output.explained, 1 - expected / constant)
    assert output.loss.ndim == 0 and output.masked == 10 == round(0.3 * 32)
    assert abs(float(output.prediction_term) - 1) < 0.1  # nothing is predicted yet


@torch.no_grad()
def test_explained_is_one_for_perfect_predictions_and_at_most_zero_for_constants() -> None:
    model, jepa = made()
    tokens = text()
    target = F.layer_norm(jepa.target(tokens), (16,))

    class Fixed(nn.Module):
        def __init__(self, constant: bool) -> None:
            super().__init__()
            self.constant = constant

        def forward(self, masked: Tensor, visible: Tensor, seen: Tensor) -> Tensor:
            exact = at(target, masked)
            return exact.mean((0, 1), keepdim=True).expand_as(exact) if self.constant else exact

    jepa.predictor = Fixed(constant=False)  # type: ignore[assignment]
    assert float(jepa(model, tokens, 0).explained) == 1.0
    jepa.predictor = Fixed(constant=True)  # type: ignore[assignment]
    assert abs(float(jepa(model, tokens, 0).explained)) < 1e-5


def test_a_step_gives_equal_losses_whatever_the_global_generator_says() -> None:
    model, jepa = made()
    tokens = text()
    first = jepa(model, tokens, 2).loss
    state = torch.get_rng_state()
    torch.rand(5)
    assert torch.equal(jepa(model, tokens, 2).loss, first)
    torch.set_rng_state(state)
    assert not torch.equal(jepa(model, tokens, 3).loss, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_embedding_is_whole_again_after_a_masked_pass() -> None:
    model, jepa = made()
    tokens = text()
    before = model(tokens).hidden_BTD
    mask = jepa.masks(tokens, 0)
    assert not torch.equal(masked_features(model, tokens, mask, jepa.mask_embedding), before)
    assert torch.equal(model(tokens).hidden_BTD, before)
    with pytest.raises(ValueError, match="context"):
        masked_features(model, text().repeat(1, 2), mask.repeat(1, 2), jepa.mask_embedding)
    assert torch.equal(model(tokens).hidden_BTD, before)


def test_the_weight_rises_over_the_warmup() -> None:
    config = JepaConfig(weight=0.5, warmup=4)
    assert [config.weight_at(step) for step in (0, 1, 3, 4, 99)] == [0.125, 0.25, 0.5, 0.5, 0.5]
    assert JepaConfig(weight=0.5, warmup=0).weight_at(0) == 0.5


def test_penalties_join_the_loss_and_their_gradient_the_encoder() -> None:
    model, jepa = made(CONFIG.model_copy(update={"variance_weight": 0.5, "covariance_weight": 0.1}))
    output = jepa(model, text(), 0)
    assert float(output.penalty.detach()) > 0
    torch.testing.assert_close(output.loss, 0.25 * (output.prediction_term + output.penalty))
    output.penalty.backward()
    assert {"embedding.weight", "sublayers.0.body.qkv.weight", "final_norm.gain"} <= reached(model)
    plain, other = made()
    assert float(other(plain, text(), 0).penalty) == 0


def test_training_learns_to_predict_and_does_not_collapse() -> None:
    words = torch.tensor([list(range(k, k + 8)) for k in range(8, 40, 8)])
    generator = torch.Generator().manual_seed(1)
    model, jepa = made(CONFIG.model_copy(update={"layers": 1}), steps=60, n_layers=1)
    both = nn.ModuleDict({"model": model, "jepa": jepa})
    optimizer = build_optimizer(both, Rates(lr=0.01))
    explained = []
    for step in range(60):
        tokens = words[torch.randint(4, (8, 4), generator=generator)].flatten(1)
        output = jepa(model, tokens, step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        jepa.update_target(step)
        explained.append(float(output.explained))
    assert explained[0] < 0 and sum(explained[-10:]) / 10 > 0.08
    assert not output.collapsed


def test_mixed_precision_gives_a_float32_loss() -> None:
    model, jepa = made()
    with torch.autocast("cpu", torch.bfloat16):
        output = jepa(model, text(), 0)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and reached(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ration": 0.3}, "Extra inputs"),
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": 0.0}, "greater than 0"),
        ({"ratio": float("nan")}, "finite number"),
        ({"weight": -0.1}, "greater than or equal to 0"),
        ({"span_low": 5, "span_high": 4}, "span_low must be at most span_high, got 5 and 4"),
        ({"width": 12, "heads": 4}, "even integer"),
        ({"width": 30, "heads": 4}, "even integer"),
        ({"ema_start": 0.99, "ema_end": 0.9}, "ema_start must be below ema_end"),
        ({"enabled": 1}, "valid boolean"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JepaConfig(**given)


def test_defaults_are_the_declared_ones() -> None:
    config = JepaConfig()
    assert (config.weight, config.ratio, config.span_low, config.span_high) == (0.25, 0.3, 3, 9)
    assert (config.ema_start, config.ema_end) == (0.996, 1.0)
    with pytest.raises(ValidationError, match="frozen"):
        config.weight = 1.0  # type: ignore[misc]


def test_a_context_without_a_mask_is_refused_before_anything_is_built() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab=64, d_model=16, n_layers=1, n_heads=2, context=8, **PLAIN))
    with pytest.raises(ConfigError, match="on 8 tokens is 2 tokens"):
        JepaObjective(model, CONFIG, steps=10, seed=0)
