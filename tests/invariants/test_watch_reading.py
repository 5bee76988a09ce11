"""What is read off the gradient of a loss: its targets, weights, smoothing and value; and nothing where it is another loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from karat.invariants.runtime.watching.reading import read, read_binary, read_squashed


def gradient(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone().requires_grad_(True)
    loss(x).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_weights_and_loss_are_read_off_the_gradient(dtype: torch.dtype, smoothing: float) -> None:
    torch.manual_seed(0)
    x, y = (2 * torch.randn(32, 7)).to(dtype), torch.randint(7, (32,))
    y[::5] = -100
    g = gradient(x, lambda x: 0.25 * F.cross_entropy(x.float(), y, label_smoothing=smoothing))
    reading = read(x, g)
    if dtype is torch.bfloat16 and smoothing:
        return  # eight bits do not tell smoothing from rounding
    assert reading is not None and reading.share == pytest.approx(0.25, rel=1e-2)
    assert torch.equal(reading.targets, torch.where(y < 0, -1, y)) and reading.counted == int((y >= 0).sum())
    assert reading.smoothing == pytest.approx(smoothing, abs=1e-3)
    assert reading.loss == pytest.approx(float(F.cross_entropy(x.float(), y)), rel=1e-3)


def test_classes_may_come_second() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 6, 5), torch.randint(6, (4, 5))
    reading = read(x, gradient(x, lambda x: F.cross_entropy(x, y)))
    assert reading is not None and torch.equal(reading.targets, y) and reading.share == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: F.multi_margin_loss(x, y),
        lambda x, y: F.mse_loss(x, F.one_hot(y, 7).float()),
        lambda x, y: F.cross_entropy(x, torch.randn(32, 7).softmax(-1)),
        lambda x, y: F.cross_entropy(x, y) + 1e-2 * x.logsumexp(-1).square().mean(),
        lambda x, y: F.cross_entropy(x / 2, y),
        lambda x, y: F.cross_entropy(x.softmax(-1), y),
        lambda x, y: F.nll_loss(x, y),
        lambda x, y: -F.cross_entropy(x, y),
    ],
)
def test_other_losses_are_not_taken_for_one(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, y = 2 * torch.randn(32, 7), torch.randint(7, (32,))
    assert read(x, gradient(x, lambda x: loss(x, y))) is None


def test_the_softmax_of_a_softmax() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 7), torch.randint(7, (32,))
    assert read_squashed(x, gradient(x, lambda x: F.cross_entropy(x.softmax(-1), y)))
    for scale in (1.0, 10.0):
        assert not read_squashed(scale * x, gradient(scale * x, lambda x: F.cross_entropy(x, y)))
        assert not read_squashed(
            scale * x, gradient(scale * x, lambda x: F.mse_loss(x.softmax(-1), F.one_hot(y, 7).float()))
        )


def test_binary_targets_are_read() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40), (torch.rand(40) < 0.3).float()
    reading = read_binary(
        x, gradient(x, lambda x: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor(3.0)))
    )
    assert reading is not None and torch.equal(reading.targets.float(), y)
    assert reading.weights == pytest.approx((1 / 40, 3 / 40), rel=1e-3)
    assert read_binary(x, gradient(x, lambda x: F.mse_loss(x, y))) is None
