"""What stands in the place of something else: gradients made finite, a teacher that is the student, sums of losses given
probabilities, positions and sums in a type too short; each beside what looks alike and is right."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.loops import replaced
from corpus.watched import watched
from torch import Tensor, nn

from karat.invariants.runtime.watching.checks.loss_graph import mistaken
from karat.invariants.runtime.watching.counted import rounded

Attach = Callable[..., Any]
CASES = {case.name: case for case in replaced.CASES}


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """The graph of a loss is looked for among the youngest objects: a collection before the step has it seen a step later."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", CASES)
def test_each_is_named_at_its_step_and_its_twin_is_not(name: str) -> None:
    case = CASES[name]
    found = watched(lambda attach: case.run(attach, True))
    assert [(v.step, v.severity) for v in found if v.slug in case.rules] == [(case.first_effect, "WARN")]
    assert watched(lambda attach: case.run(attach, False)) == []


@pytest.mark.parametrize("loop", replaced.CLEAN, ids=lambda loop: loop.name)
def test_what_looks_alike_sets_off_nothing(loop: Any) -> None:
    assert watched(loop.run) == []


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, out))


def trained(attach: Attach, brought: Callable[[int, nn.Module], bool], steps: int = 140) -> None:
    """A loop that spoils the loss where it is told to and makes its gradients finite."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    attach(model, optimizer)
    for step in range(steps):
        loss = F.cross_entropy(model(torch.randn(16, 8)), torch.randint(3, (16,)))
        optimizer.zero_grad()
        (loss * float("nan") if brought(step, model) else loss).backward()  # type: ignore[no-untyped-call]
        for p in model.parameters():
            assert p.grad is not None
            p.grad.nan_to_num_()
        optimizer.step()


def test_gradients_that_are_all_replaced_are_seen_between_two_looks_in_the_step_after() -> None:
    found = [v for v in watched(lambda attach: trained(attach, lambda step, _: step >= 130)) if v.slug == "finite"]
    assert [(v.step, v.severity) for v in found] == [(131, "WARN")]
    assert "the step applies zeros" in found[0].observed


def test_a_step_that_is_done_again_after_a_nan_applies_what_the_second_backward_brought() -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        for step in range(20):
            loss = F.cross_entropy(model(torch.randn(16, 8)), torch.randint(3, (16,)))
            optimizer.zero_grad()
            if step % 4 == 0:
                (loss * float("inf")).backward(retain_graph=True)  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    assert [v for v in watched(run) if v.slug == "finite"] == []


def test_a_gradient_whose_norm_alone_overflows_is_not_taken_for_an_infinite_one() -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        attach(model, optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            (1e25 * F.cross_entropy(model(torch.randn(16, 8)), torch.randint(3, (16,)))).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_value_(model.parameters(), 1.0)
            optimizer.step()

    assert [v for v in watched(run) if v.slug == "finite"] == []


Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (lambda z, t: F.kl_div(z.softmax(-1), t, reduction="batchmean"), "kl_div"),
        (lambda z, t: F.kl_div(z.softmax(-1), t, reduction="none").sum(-1).mean(), "kl_div"),
        (lambda z, t: F.kl_div(z.log_softmax(-1), t, reduction="batchmean"), ""),
        (lambda z, t: F.kl_div(z.softmax(-1).log(), t, reduction="batchmean"), ""),
        (
            lambda z, t: F.cross_entropy(z.softmax(-1).view(-1, 3), t) + z.square().mean(),
            "softmax of what is a softmax",
        ),
        (lambda z, t: F.cross_entropy(z, t) + z.softmax(-1).square().mean(), ""),
        (lambda z, t: F.binary_cross_entropy_with_logits(z.sigmoid(), t), "sigmoid of what is a sigmoid"),
        (lambda z, t: F.binary_cross_entropy(z.sigmoid(), t), ""),
        (lambda z, t: (1 - t * z.softmax(-1)).mean(), ""),
        (lambda z, t: (t - z.softmax(-1)).square().mean(), ""),
    ],
)
def test_what_a_loss_is_given_is_read_off_its_graph(loss: Loss, wrong: str) -> None:
    model = small()
    found = loss(model(torch.randn(5, 8)), torch.rand(5, 3).softmax(-1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert (wrong in mistaken(found, names)) if wrong else mistaken(found, names) == ""
    assert mistaken(found, {}) == ""  # another loop's


def test_positions_are_rounded_where_neighbours_are_one_and_other_integers_are_not_looked_at() -> None:
    def cast(source: Tensor, dtype: torch.dtype) -> str:
        return rounded(Tensor.to, (source, dtype), source.to(dtype))

    long = torch.arange(300)
    assert "300 positions" in rounded(torch.arange, (300,), torch.arange(300, dtype=torch.bfloat16))
    assert "beyond 256" in cast(long, torch.bfloat16)
    assert "600 positions" in cast(long.expand(2, 300), torch.bfloat16)
    assert cast(long[:, None].float(), torch.bfloat16)
    assert "beyond 2048" in cast(torch.arange(3000), torch.float16)
    assert cast(torch.arange(256), torch.bfloat16) == ""
    assert cast(long, torch.float16) == ""
    assert cast(1000 + 17 * long, torch.bfloat16) == ""
    assert cast(long / 300, torch.bfloat16) == ""
    assert rounded(torch.arange, (0, 1, 1e-3), torch.arange(0, 1, 1e-3, dtype=torch.bfloat16)) == ""
    assert rounded(torch.mul, (long, 2), (long * 2).bfloat16()) == ""
