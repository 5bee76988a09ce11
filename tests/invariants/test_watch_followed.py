"""Siblings that stay one, schedulers of the other mode, gradients that are clipped once they were applied; each beside what
looks alike and is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.watched import watched
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from karat.invariants.runtime.watching.checks.plateau import mode_of

Attach = Callable[..., Any]


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, out))


# -- RUN-30 -----------------------------------------------------------------------------------------------------------


class Side(nn.Module):
    """What leaves a module as it is, but for an adapter that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(12, 4)), nn.Parameter(torch.ones(4, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x + x @ self.down @ self.up


def together(first: nn.Module, second: nn.Module, parts: Callable[[int], tuple[slice, slice]], steps: int = 12,
             held: bool = True, separate: bool = False) -> Callable[[Attach], list[Tensor]]:  # fmt: skip
    """Two modules of one list that are called by themselves, each on its part of a batch."""

    def run(attach: Attach) -> list[Tensor]:
        both = nn.ModuleList([first, second])
        lists = [[*first.parameters()], [*second.parameters()]]
        if separate:
            optimizers = [torch.optim.SGD(ps, lr=0.05) for ps in lists]
        else:
            optimizers = [torch.optim.SGD([*lists[0], *(lists[1] if held else ())], lr=0.05)]
        attach(both, optimizers)
        draw = torch.Generator().manual_seed(1)
        for step in range(steps):
            x = torch.randn(16, 12, generator=draw)
            own, other = parts(step)
            both.zero_grad()
            (first(x[own]).pow(2).mean() + second(x[other]).pow(2).mean()).backward()
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach().clone() for p in both.parameters()]

    return run


def whole(step: int) -> tuple[slice, slice]:
    return slice(None), slice(None)


def halves(step: int) -> tuple[slice, slice]:
    return slice(0, 8), slice(8, None)


def twins(run: Callable[[Attach], Any]) -> list[tuple[str, int, str]]:
    return [(v.severity, v.step, v.where) for v in watched(run) if v.slug == "twins"]


@pytest.mark.parametrize("separate", [False, True])
def test_copies_that_get_equal_gradients_are_said_in_the_third_step(separate: bool) -> None:
    first = small()
    found = [v for v in watched(together(first, copy.deepcopy(first), whole, separate=separate)) if v.slug == "twins"]
    assert [(v.severity, v.step, v.where) for v in found] == [("WARN", 2, "1")]
    assert "1 began with the weights of 0 and got the same gradients" in found[0].observed


def test_copies_inside_a_module_are_said_by_their_names() -> None:
    def run(attach: Attach) -> None:
        model = nn.Module()
        model.left, model.other = small(), small()
        model.right = copy.deepcopy(model.left)
        optimizer = torch.optim.Adam(model.parameters())
        attach(model, optimizer)
        for _ in range(6):
            x = torch.randn(16, 12)
            optimizer.zero_grad()
            (model.left(x) + model.right(x) + model.other(x)).pow(2).mean().backward()
            optimizer.step()

    assert twins(run) == [("WARN", 2, "right")]


def test_copies_that_get_other_gradients_are_not_said() -> None:
    first = small()
    assert not twins(together(first, copy.deepcopy(first), halves))


def test_copies_that_part_in_the_third_step_are_not_said() -> None:
    first = small()
    assert not twins(together(first, copy.deepcopy(first), lambda step: whole(step) if step < 2 else halves(step)))


def test_a_copy_that_no_optimizer_holds_is_not_said() -> None:
    first = small()
    assert not twins(together(first, copy.deepcopy(first), whole, held=False))
    assert not twins(together(first, copy.deepcopy(first).requires_grad_(False), whole))


def test_adapters_that_start_at_zero_are_not_said() -> None:
    assert not twins(together(Side(), Side(), whole))


def test_norms_and_stacked_copies_are_not_said() -> None:
    def run(attach: Attach) -> None:
        layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.0)
        model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(model, optimizer)
        for _ in range(8):
            x = torch.randn(4, 5, 12)
            optimizer.zero_grad()
            (model(x) - x.flip(1)).pow(2).mean().backward()
            optimizer.step()

    assert not twins(run)


def test_two_modules_with_one_weight_are_not_said() -> None:
    first, second = small(), small()
    for own, other in ((0, 0), (2, 2)):
        second[other].weight, second[other].bias = first[own].weight, first[own].bias

    def run(attach: Attach) -> None:
        model = nn.ModuleList([first, second])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(model, optimizer)
        for _ in range(6):
            x = torch.randn(16, 12)
            optimizer.zero_grad()
            (first(x) + second(x)).pow(2).mean().backward()
            optimizer.step()

    assert not twins(run)


# -- RUN-5 ------------------------------------------------------------------------------------------------------------


def evaluated(
    mode: str, names: Iterable[str], given: Callable[[float], float], number: bool = True
) -> Callable[[Attach], None]:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scheduler = ReduceLROnPlateau(optimizer, mode=mode, patience=3)
        guards = attach(model, optimizer)
        for _ in range(12):
            x = torch.randn(16, 12)
            optimizer.zero_grad()
            F.mse_loss(model(x), x[:, :3]).backward()
            optimizer.step()
            with torch.no_grad():
                loss = F.mse_loss(model(x), x[:, :3])
            guards.log(**{name: loss.item() if number else loss for name in names})
            scheduler.step(given(loss.item()))

    return run


def stepped(run: Callable[[Attach], None]) -> list[tuple[str, str]]:
    return [(v.severity, v.observed) for v in watched(run) if v.slug == "scheduler-steps"]


@pytest.mark.parametrize(
    ("mode", "name"), [("max", "val_loss"), ("max", "loss"), ("max", "valid/nll"), ("min", "val_acc")]
)
@pytest.mark.parametrize("number", [True, False])
def test_a_scheduler_of_the_other_mode_is_said(mode: str, name: str, number: bool) -> None:
    found = stepped(evaluated(mode, [name], lambda loss: loss, number))
    assert [severity for severity, _ in found] == ["WARN"]
    assert f"mode='{mode}' and is stepped with {name}" in found[0][1]


@pytest.mark.parametrize(
    ("mode", "names", "given"),
    [
        ("min", ["val_loss"], lambda loss: loss),
        ("max", ["val_acc"], lambda loss: loss),
        ("max", ["val_loss"], lambda loss: -loss),
        ("max", ["neg_loss"], lambda loss: loss),
        ("max", ["reward"], lambda loss: loss),
        ("max", ["val_loss", "reward"], lambda loss: loss),
        ("max", ["val_loss"], lambda loss: 1.0),
    ],
)
def test_a_scheduler_that_gets_what_it_is_for_is_not_said(
    mode: str, names: list[str], given: Callable[[float], float]
) -> None:
    assert not stepped(evaluated(mode, names, given))


def test_names_tell_what_a_number_is() -> None:
    assert [mode_of(name) for name in ("val_loss", "Loss/val", "test-acc", "f1", "lossless", "neg_loss", "loss_acc", "grad")] == [
        "min", "min", "max", "max", "", "", "", ""
    ]  # fmt: skip


# -- RUN-13 -----------------------------------------------------------------------------------------------------------


def ended(after: Callable[[list[nn.Parameter], int], None], keeps: bool = False) -> Callable[[Attach], list[Tensor]]:
    """A loop that does something with its gradients after the step."""

    def run(attach: Attach) -> list[Tensor]:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(model, optimizer)
        parameters = [*model.parameters()]
        for step in range(8):
            x = torch.randn(16, 12)
            F.mse_loss(model(x), 3 * x[:, :3]).backward()
            optimizer.step()
            after(parameters, step)
            optimizer.zero_grad(set_to_none=not keeps)
        return [p.detach().clone() for p in parameters]

    return run


def late(run: Callable[[Attach], Any]) -> list[tuple[str, int]]:
    return [(v.severity, v.step) for v in watched(run) if v.slug == "clipping"]


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (lambda ps, step: clip_grad_norm_(ps, 0.1), "multiplied by"),
        (lambda ps, step: clip_grad_norm_(ps, 0.1, foreach=False), "multiplied by"),
        (lambda ps, step: clip_grad_value_(ps, 0.01), "cut at 0.01"),
    ],
)
def test_what_is_clipped_once_it_was_applied_is_said(clip: Callable[..., None], words: str) -> None:
    found = [v for v in watched(ended(clip)) if v.slug == "clipping"]
    assert [(v.severity, v.step) for v in found] == [("WARN", 1)]
    assert words in found[0].observed and "after optimizer.step()" in found[0].observed


def _add(parameters: list[nn.Parameter], step: int) -> None:
    sum(p.pow(3).sum() for p in parameters).backward()


def _zero(parameters: list[nn.Parameter], step: int) -> None:
    for p in parameters:
        p.grad.zero_()


def _halve_one(parameters: list[nn.Parameter], step: int) -> None:
    parameters[0].grad.mul_(0.5)


@pytest.mark.parametrize(
    "after", [lambda ps, step: None, lambda ps, step: [float(p.grad.norm()) for p in ps], _add, _zero, _halve_one,
              lambda ps, step: clip_grad_norm_(ps, 1e6)],
)  # fmt: skip
@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_no_clipping_is_not_said(after: Callable[..., Any], keeps: bool) -> None:
    assert not late(ended(after, keeps))


def test_gradients_that_are_cut_at_a_value_before_the_step_are_not_said() -> None:
    def run(attach: Attach) -> None:
        model = small(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(model, optimizer)
        for _ in range(6):
            x = torch.randn(16, 12)
            optimizer.zero_grad()
            (0.01 * (model(x) - 5).pow(2).mean()).backward()
            clip_grad_value_(model.parameters(), 0.01)  # that of the last bias is (0.01, …) in each step
            optimizer.step()

    assert not late(run)


def test_gradients_that_are_carried_on_are_not_said() -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        attach(model, optimizer)
        for _ in range(6):
            x = torch.randn(16, 12)
            F.mse_loss(model(x), x[:, :3]).backward()
            optimizer.step()
            for p in model.parameters():
                p.grad.mul_(0.5)

    assert not late(run)


# -- RUN-16 -----------------------------------------------------------------------------------------------------------


def test_a_search_that_has_converged_is_not_said() -> None:
    def run(attach: Attach) -> None:
        model, x = nn.Linear(4, 1), torch.randn(40, 4)
        target = x @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]]) + 0.01 * torch.randn(40, 1)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
        attach(model, optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            return loss

        for _ in range(30):
            optimizer.step(closure)

    assert not [v for v in watched(run) if v.slug == "parameter-moves"]


# -- all --------------------------------------------------------------------------------------------------------------


def test_a_watched_loop_ends_at_the_same_weights() -> None:
    first = small()
    loops = [
        lambda: together(copy.deepcopy(first), copy.deepcopy(first), whole),
        lambda: ended(lambda ps, step: clip_grad_norm_(ps, 0.1)),
    ]
    for made in loops:
        results: list[list[Tensor]] = []
        torch.manual_seed(3)
        plain = made()(lambda model, optimizer: None)
        watched(lambda attach, made=made, results=results: results.append(made()(attach)))  # type: ignore[misc]
        assert all(torch.equal(a, b) for a, b in zip(plain, results[0], strict=True))
