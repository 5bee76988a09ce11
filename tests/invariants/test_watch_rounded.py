"""What comes back as something else: weights by way of a shorter type, weights that no file gave, batches that were written
to; each beside what looks alike and is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.loops import rounded
from corpus.watched import watched
from torch import Tensor, nn

Attach = Callable[..., Any]
Run = Callable[[Attach], None]
CASES = {case.name: case for case in rounded.CASES}


@pytest.mark.parametrize("name", CASES)
def test_each_is_named_at_its_step_and_its_twin_is_not(name: str) -> None:
    case = CASES[name]
    found = watched(lambda attach: case.run(attach, True))
    assert [(v.slug, v.step, v.severity) for v in found if v.slug in case.rules] == [
        (next(iter(case.rules)), case.first_effect, "WARN")
    ]
    assert watched(lambda attach: case.run(attach, False)) == []


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor | None = None) -> None:
    x = torch.randn(16, 8) if x is None else x
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.randint(3, (len(x),))).backward()
    optimizer.step()


@pytest.mark.parametrize("put_back", [True, False])
def test_weights_that_are_put_back_after_the_shorter_type_are_not_rounded(put_back: bool) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        attach(model, optimizer)
        for step in range(12):
            if step == 8:
                before = copy.deepcopy(model.state_dict())
                with torch.no_grad():
                    model.bfloat16()(torch.randn(4, 8).bfloat16())
                model.float()
                if put_back:
                    model.load_state_dict(before)
            stepped(model, optimizer)

    assert [(v.slug, v.step) for v in watched(run) if v.slug == "precision"] == ([] if put_back else [("precision", 8)])


def test_a_model_that_was_read_in_bfloat16_is_not_rounded_by_an_evaluation_in_it() -> None:
    def run(attach: Attach) -> None:
        model = small().bfloat16().float()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        attach(model, optimizer)
        for _ in range(4):
            with torch.no_grad():
                model.bfloat16()(torch.randn(4, 8).bfloat16())
            model.float()
            stepped(model, optimizer)

    assert [v for v in watched(run) if v.slug == "precision"] == []


@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_guards_that_are_attached_in_mid_run_take_no_weights_for_new_ones(rate: float) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(40):
            stepped(model, optimizer)
        attach(model, optimizer)
        stepped(model, optimizer)

    assert [v for v in watched(run) if v.slug == "resume"] == []


def test_a_new_head_on_trained_layers_is_not_a_state_that_was_not_loaded() -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(60):
            stepped(model, optimizer)
        model[4].reset_parameters()  # type: ignore[operator]
        attach(model, optimizer)
        stepped(model, optimizer)

    assert [v for v in watched(run) if v.slug == "resume"] == []


@pytest.mark.parametrize("way", ["filled anew", "shuffled", "one slice"])
def test_a_buffer_that_is_filled_anew_is_no_data_that_change(way: str) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        attach(model, optimizer)
        held = torch.randn(64, 8)
        for step in range(24):
            if way == "one slice":
                held *= 0.97
            elif step % 4 == 0:
                held.copy_(torch.randn(64, 8) if way == "filled anew" else held[torch.randperm(64)])
            start = 0 if way == "one slice" else step % 4 * 16
            stepped(model, optimizer, held[start : start + 16])

    assert [v for v in watched(run) if v.slug == "inputs"] == []
