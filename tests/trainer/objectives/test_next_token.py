"""The loss through the head, and its gradients made chunk by chunk, are those of torch's cross-entropy of the logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from karat.trainer.objectives import next_token
from karat.trainer.objectives.next_token import head_loss


def example(rows: int = 12, vocab: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = (5 * torch.randn(rows // 4, 4, 6)).requires_grad_()
    return hidden, torch.randn(vocab, 6, requires_grad=True), torch.randint(vocab, (rows // 4, 4))


@pytest.mark.parametrize("at_a_time", [1, 7, 35, 10**6])
def test_value_and_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(next_token, "LOGITS_AT_A_TIME", at_a_time)
    hidden, head, targets = example()
    loss = head_loss(hidden, head, targets)
    made = torch.autograd.grad(3 * loss, (hidden, head), retain_graph=True)
    again = torch.autograd.grad(3 * loss, (hidden, head))
    expected = F.cross_entropy((hidden @ head.t()).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    for gradient, second, of_torch in zip(made, again, torch.autograd.grad(3 * expected, (hidden, head)), strict=True):
        torch.testing.assert_close(gradient, of_torch)
        assert torch.equal(gradient, second)


def test_inputs_are_left_alone_and_only_wanted_gradients_are_made() -> None:
    hidden, head, targets = example()
    before = hidden.detach().clone(), head.detach().clone()
    fixed = head.detach()
    (gradient,) = torch.autograd.grad(head_loss(hidden, fixed, targets), hidden)
    (whole, _) = torch.autograd.grad(head_loss(hidden, head, targets), (hidden, head))
    assert torch.equal(gradient, whole)
    (of_head,) = torch.autograd.grad(head_loss(hidden.detach(), head, targets), head)
    assert of_head.abs().max() > 0
    assert torch.equal(hidden, before[0]) and torch.equal(head, before[1])
    with torch.no_grad():
        assert not head_loss(hidden, head, targets).requires_grad


def test_a_loss_that_overflows_float16_like_scores_is_finite_and_a_nan_is_not_hidden() -> None:
    hidden, head, targets = example()
    assert math.isfinite(head_loss(hidden * 1e4, head, targets).item())
    with torch.no_grad():
        hidden[0, 0, 0] = math.nan
    assert math.isnan(head_loss(hidden, head, targets).item())


def test_under_autocast_the_loss_is_near_and_the_gradients_have_the_weights_type() -> None:
    hidden, head, targets = example()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, head, targets)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert [g.dtype for g in gradients] == [torch.float32] * 2
    torch.testing.assert_close(loss, head_loss(hidden, head, targets), rtol=0.02, atol=0.05)


def test_targets_of_another_shape_are_refused() -> None:
    hidden, head, targets = example()
    with pytest.raises(ValueError, match="targets must have the shape"):
        head_loss(hidden, head, targets.t())
