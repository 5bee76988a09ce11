"""The squared ReLU's hand-written gradient, and both feed-forward forms against their definitions."""

import torch
import torch.nn.functional as F

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.feedforward import FeedForward, squared_relu


def test_squared_relu_and_its_gradient() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    y = squared_relu(x)
    y.backward(torch.tensor([1.0, 1.0, 5.0]))
    assert y.tolist() == [0.0, 0.0, 9.0]
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 30.0]


def test_both_forms_are_their_definitions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    plain = FeedForward(ModelConfig(d_model=8, n_heads=2, gf16=False))
    torch.testing.assert_close(plain(x), F.relu(x @ plain.up.weight.t()) ** 2 @ plain.down.weight.t())
    gated = FeedForward(ModelConfig(d_model=8, n_heads=2, gf16=False, activation="swiglu"))
    assert gated.gate is not None
    hidden = F.silu(x @ gated.gate.weight.t()) * (x @ gated.up.weight.t())
    torch.testing.assert_close(gated(x), hidden @ gated.down.weight.t())
