"""The loss and its hand-written gradient equal torch's cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from karat.trainer.objectives.next_token import next_token_loss


def test_value_and_gradient_are_those_of_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 4, 7)).requires_grad_()
    targets = torch.randint(7, (3, 4))
    loss = next_token_loss(logits, targets)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_logits_are_left_alone_and_a_second_backward_raises() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    before = logits.detach().clone()
    loss = next_token_loss(logits, torch.zeros(2, 3, dtype=torch.int64))
    loss.backward(retain_graph=True)
    assert torch.equal(logits, before)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
