"""Streams that depend on the token: doubly stochastic for each, the static ones at the start, trained from there on."""

import math

import pytest
import torch

from karat.core.formulas import birkhoff
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.dynamic_streams import DynamicStreams, sublayer_input, updated, worst_token
from karat.trainer.models.residual import ResidualStreams
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.next_token import head_loss


def model(n: int = 2, *, dynamic: bool = True, **settings: object) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocab": 11, "d_model": 8, "n_layers": 2, "n_heads": 2, "context": 6, "gf16": False, **settings}
    return Transformer(ModelConfig.model_validate({"streams": n, "dynamic_streams": dynamic} | shape))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_start_is_that_of_the_static_streams(n: int) -> None:
    tokens = torch.randint(11, (3, 6))
    static, dynamic = model(n, dynamic=False), model(n)
    torch.testing.assert_close(dynamic(tokens).logits_BTV, static(tokens).logits_BTV, rtol=1e-4, atol=1e-5)


def test_one_update_is_the_definition_token_by_token() -> None:
    torch.manual_seed(1)
    streams = DynamicStreams(3, 3, 4)
    for parameter in streams.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_RND, y_RD = torch.randn(5, 3, 4), torch.randn(5, 4)
    coefficients = streams.coefficients(1, x_RND)
    new = updated(x_RND, coefficients, y_RD)
    for r in range(5):
        flat = x_RND[r].flatten()
        v = flat / (flat.square().mean() + 1e-5).sqrt() * (1 + streams.gains[1])
        raw = streams.maps[1] @ v
        scale, bias = streams.scales[1], streams.biases[1]
        mix = (scale[0] * raw[:6] + bias[:6]).softmax(-1)
        h = torch.stack([torch.stack(row) for row in birkhoff.mixture(mix.unbind(), 3)])
        pre, post = (scale[1] * raw[6:9] + bias[6:9]).sigmoid(), 2 * (scale[2] * raw[9:] + bias[9:]).sigmoid()
        torch.testing.assert_close(new[r], h @ x_RND[r] + post[:, None] * y_RD[r])
        torch.testing.assert_close(sublayer_input(x_RND, coefficients.pre_RN)[r], pre @ x_RND[r])


def test_every_parameter_is_trained_and_tokens_are_mixed_differently() -> None:
    net, tokens = model(), torch.randint(11, (4, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    torch.nn.init.constant_(net.residual.scales, 1.0)  # type: ignore[union-attr]
    for _ in range(3):
        optimizer.zero_grad()
        output = net(tokens)
        head_loss(output.hidden_BTD, output.head_VD, tokens.roll(-1, 1)).backward()
        optimizer.step()
    residual = net.residual
    assert isinstance(residual, DynamicStreams)
    for name, parameter in residual.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    x_RND = torch.randn(6, 2, 8)
    gates = residual.coefficients(3, x_RND).pre_RN
    assert (gates - gates[:1]).abs().max() > 1e-4


def test_the_worst_token_is_handed_to_the_guard() -> None:
    good = torch.eye(2).expand(3, 4, 2, 2).clone()
    bad = good.clone()
    bad[1, 2, 0, 0] = 0.9
    assert torch.equal(worst_token(bad), bad[:, 2])
    bad[2, 3] = torch.tensor([[1.5, -0.5], [-0.5, 1.5]])
    assert torch.equal(worst_token(bad), bad[:, 3])
    bad[0, 1, 1, 1] = math.nan
    assert worst_token(bad)[0, 1, 1].isnan()


def test_output_names_the_matrices_of_one_token_and_streams_differ() -> None:
    output = model()(torch.randint(11, (2, 6)))
    assert output.mixing_SNN is not None and output.mixing_SNN.shape == (4, 2, 2)
    assert all(birkhoff.residual(matrix) < 1e-6 for matrix in output.mixing_SNN.tolist())
    assert output.stream_spread is not None and output.stream_spread > 0.01


@pytest.mark.parametrize(("n", "scalars"), [(2, 9), (4, 40)])
def test_the_seeds_biases_count_as_in_the_seed_and_change_nothing_at_the_start(n: int, scalars: int) -> None:
    plain, biased = ResidualStreams(5, n), ResidualStreams(5, n, biases=True)
    assert sum(p.numel() for p in biased.parameters()) == 5 * scalars
    for a, b in zip(plain.coefficients(), biased.coefficients(), strict=True):
        torch.testing.assert_close(a, b)
    torch.nn.init.constant_(biased.pre_bias, 0.7)  # type: ignore[arg-type]
    torch.testing.assert_close(biased.coefficients().pre_SN, (biased.pre_logits + 0.7).sigmoid())
