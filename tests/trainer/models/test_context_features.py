"""The hybrid model: features of the last six bytes and real attention; each of the seed's broken parts fails here."""

import pytest
import torch
import torch.nn.functional as F

from karat.trainer.config_file import read_config
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.context_features import SEED_WEIGHTS, ContextFeatures
from karat.trainer.models.transformer import Transformer

SMALL = {"vocab": 13, "d_model": 16, "n_heads": 2, "context": 20, "context_features": 6, "streams": 1, "gf16": False}


def hybrid(**settings: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig.model_validate({**SMALL, **settings}))


def test_features_are_the_weighted_sum_over_the_tokens_before() -> None:
    torch.manual_seed(0)
    features = ContextFeatures(6, 13, 4, 1.0)
    tokens = torch.randint(13, (2, 9))
    made = features(tokens)
    for b in range(2):
        for t in range(9):
            expected = sum(
                (SEED_WEIGHTS[i - 1] * features.tables_NVD[i - 1, tokens[b, t - i]] for i in range(1, 7) if t >= i),
                start=torch.zeros(4),
            )
            torch.testing.assert_close(made[b, t], expected)


@pytest.mark.parametrize("length", [1, 2, 6, 7])
def test_short_sequences_have_the_features_that_exist(length: int) -> None:
    features = ContextFeatures(6, 13, 4, 1.0)
    tokens = torch.arange(7)[None]
    torch.testing.assert_close(features(tokens[:, :length]), features(tokens)[:, :length])


def test_every_weight_is_trained() -> None:
    """In the seed a projection was counted and never used, and the second layer's matrices stayed zero."""
    model, tokens = hybrid(), torch.randint(13, (4, 20))
    F.cross_entropy(model(tokens[:, :-1]).logits_BTV.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert parameter.detach().abs().max() > 0, name


def test_the_layers_have_weights_of_their_own() -> None:
    """In the seed's forward pass layer 2 used the matrices of layer 1, and its gradients were of matrices not used."""
    model, tokens = hybrid(), torch.randint(13, (2, 12))
    before = model(tokens).logits_BTV
    for layer in model.attentions():
        kept = layer.qkv.weight.detach().clone()
        with torch.no_grad():
            layer.qkv.weight.mul_(1.5)
        assert (model(tokens).logits_BTV - before).abs().max() > 1e-4
        with torch.no_grad():
            layer.qkv.weight.copy_(kept)
    first, second = (layer.qkv.weight for layer in model.attentions())
    assert first.data_ptr() != second.data_ptr() and not torch.equal(first, second)


def test_attention_sees_beyond_the_features_and_where() -> None:
    """At sequence length one, as the seed called it, attention could not: the far token would change nothing."""
    model, tokens = hybrid(), torch.randint(13, (1, 20))
    far = tokens.clone()
    far[0, 3] = (far[0, 3] + 1) % 13
    last = model(tokens).logits_BTV[0, -1]
    assert (model(far).logits_BTV[0, -1] - last).abs().max() > 1e-5
    swapped = tokens.clone()
    swapped[0, [2, 9]] = tokens[0, [9, 2]]
    if swapped[0, 2] != swapped[0, 9]:
        assert (model(swapped).logits_BTV[0, -1] - last).abs().max() > 1e-6  # RoPE: order matters out there


def test_outputs_do_not_depend_on_later_tokens() -> None:
    model, tokens = hybrid(), torch.randint(13, (2, 20))
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 13
    assert torch.equal(model(tokens).logits_BTV[:, :10], model(changed).logits_BTV[:, :10])


def test_weights_start_on_both_sides_of_zero() -> None:
    """The seed's generator gave numbers in [-1, 0): every initial weight was negative."""
    for name, parameter in hybrid(d_model=64).named_parameters():
        if parameter.ndim >= 2:
            assert 0.45 < (parameter > 0).float().mean() < 0.55, name


def test_the_preset_has_six_features_two_layers_and_the_golden_gain() -> None:
    config = read_config(None, [], preset="hybrid")
    assert (config.model.context_features, config.model.n_layers, config.model.activation) == (6, 2, "relu2")
    assert config.model.positions == "rope" and config.closure is not None and config.gain.gain == config.model.qk_gain


@pytest.mark.parametrize("distances", [0, 7])
def test_other_distances_are_refused(distances: int) -> None:
    with pytest.raises(ValueError, match="1 to 6"):
        ContextFeatures(distances, 13, 4, 1.0)
