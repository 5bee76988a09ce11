"""RUN-16, 17, 18: each goes wrong in the ways that the rule names, and its clean twin is quiet."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.moving import data, net, only, train
from torch import Tensor, nn

from karat.invariants.runtime import Stopped, watch
from karat.invariants.runtime.watching.sampling import MOST, fit, spread, window

# -- RUN-16 ----------------------------------------------------------------------------------------------------------


class Lazy(torch.optim.SGD):
    """Calls nothing, or only every other time."""

    every = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls = getattr(self, "calls", 0) + 1
        if self.every and self.calls % self.every == 0:
            super().step()


def lazy(parameters: Any, every: int) -> Lazy:
    optimizer = Lazy(parameters, lr=0.1)
    optimizer.every = every
    return optimizer


def test_an_optimizer_that_writes_nothing_is_found_from_its_first_step() -> None:
    model = net()
    found = train(model, lazy(model.parameters(), 0), 14)
    only(found, "parameter-moves", "FAIL", 0, "did not move", "Lazy.step() does not write to it")


def test_an_optimizer_that_collects_steps_is_none_of_it() -> None:
    model = net()
    assert train(model, lazy(model.parameters(), 4), 24) == []


def test_a_parameter_whose_step_is_skipped_by_torchs_own_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.SGD._init_group

    def without_the_first(self: Any, group: Any, params: Any, grads: Any, momenta: Any) -> Any:
        has = own(self, group, params, grads, momenta)
        if stuck:
            del params[0], grads[0]
        return has

    stuck = False
    monkeypatch.setattr(torch.optim.SGD, "_init_group", without_the_first)

    def from_five(step: int) -> None:
        nonlocal stuck
        stuck = step >= 5

    found = train(model, optimizer, 12, before=from_five)
    violation = only(found, "parameter-moves", "FAIL", 5, "0.weight did not move")
    assert violation.where == "0.weight"


def test_rates_of_zero_and_gradients_of_zero_need_no_move() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert train(model, optimizer) == []
    model = net()
    zero = lambda step: [p.grad.zero_() for p in model.parameters() if p.grad is not None]  # noqa: E731
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), before=zero) == []  # type: ignore[arg-type]


def test_an_optimizer_that_holds_nothing_that_trains() -> None:
    model = net()
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    only(train(model, optimizer), "parameter-moves", "FAIL", 0, "all 2 parameters", "requires_grad=False")


def test_a_write_between_steps_that_the_loop_did_not_do_from_the_start() -> None:
    model = net()
    again = lambda step: model[2].reset_parameters() if step == 6 else None  # type: ignore[operator]  # noqa: E731
    found = train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 12, after=again)
    only(found, "parameter-moves", "WARN", 7, "after step 6 and before step 7", "something else than the optimizer")


def test_a_loop_that_projects_after_every_step_is_none_of_it() -> None:
    model = net()

    @torch.no_grad()
    def clamp(step: int) -> None:
        for parameter in model.parameters():
            parameter.clamp_(-0.05, 0.05)

    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12, after=clamp) == []


def test_an_optimizer_that_writes_past_the_counters_moves_its_parameters() -> None:
    class Old(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad.data, alpha=-group["lr"])

    model = net()
    assert train(model, Old(model.parameters(), lr=0.1), 30) == []


@pytest.mark.parametrize(
    "kind", ["Adam", "RMSprop", "Adagrad", "Rprop", "NAdam", "RAdam", "Adadelta", "Adamax", "ASGD"]
)
def test_every_kind_of_optimizer_moves(kind: str) -> None:
    model = net()
    assert train(model, getattr(torch.optim, kind)(model.parameters()), 12) == []


# -- RUN-17, RUN-18 --------------------------------------------------------------------------------------------------


def test_declared_frozen_and_held_with_a_gradient() -> None:
    model = net()
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec={"frozen": ["0"]})
    only(found, "frozen", "FAIL", 0, "0.weight is declared frozen and moved", "group 0 of SGD holds it")


def test_declared_frozen_and_written_past_the_optimizer() -> None:
    for write in (lambda p: p.add_(1e-3), lambda p: p.data.add_(1e-3)):
        model = net()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)

        @torch.no_grad()
        def follow(step: int, model: nn.Sequential = model, write: Any = write) -> None:
            if step == 5:
                write(model[0].weight)

        found = train(model, optimizer, 16, after=follow, spec={"frozen": ["0.*"]})
        assert [v.severity for v in found] == ["FAIL"] and 6 <= found[0].step <= 12, found
        assert found[0].where == "0.weight"


def test_frozen_parameters_that_are_loaded_again_with_equal_values_stand() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    load = lambda step: model.load_state_dict(model.state_dict()) if step == 4 else None  # noqa: E731
    assert train(model, optimizer, 12, after=load, spec={"frozen": ["0"]}) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum, decay, moves", [(0.9, 0.0, True), (0.0, 0.1, True), (0.0, 0.0, False)])
def test_frozen_in_mid_run_with_a_gradient_of_zeros(momentum: float, decay: float, moves: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)

    def freeze(step: int) -> None:
        if step >= 4:
            model[0].requires_grad_(False)
            for p in model[0].parameters():
                p.grad = torch.zeros_like(p)

    found = train(model, optimizer, 8, before=freeze)
    if moves:
        only(found, "frozen", "FAIL", 4, "0.weight was frozen", "zeros", "momentum" if momentum else "weight_decay")
    else:
        assert found == []


def test_weight_decay_by_group_and_when_it_changes() -> None:
    model = net()
    groups = [{"params": [model[0].weight, model[2].weight], "weight_decay": 0.1},
              {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}]  # fmt: skip
    declared = {"decay": ["*.weight"], "no_decay": ["*.bias"]}
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert train(model, optimizer, spec=declared) == []

    def later(step: int) -> None:
        if step == 5:
            optimizer.param_groups[1]["weight_decay"] = 0.1

    violation = only(
        train(model, optimizer, 8, before=later, spec=declared), "weight-decay", "FAIL", 5, "0.bias decays"
    )
    assert "2 parameters in all" in violation.message
    optimizer.param_groups[1]["weight_decay"] = 0.0
    only(train(model, optimizer, spec={"decay": ["2.bias"]}), "weight-decay", "FAIL", 0, "2.bias does not decay")


def test_a_negative_weight_decay() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["weight_decay"] = -0.1
    only(train(model, optimizer), "weight-decay", "WARN", 0, "group 0 is -0.1")


# -- all together ----------------------------------------------------------------------------------------------------


def test_a_watched_run_is_bit_for_bit_the_unwatched_one() -> None:
    states = []
    for watched in (True, False):
        model = net(norm=True)
        mean, twin = copy.deepcopy(model), copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(5)
        guards = None
        if watched:
            guards = watch(model, optimizer, ema=mean, replicas=[twin], policy="observe", every=4,
                           spec={"frozen": ["0.bias"], "decay": ["0.weight"], "ema": 0.9, "dtype": "float32"})  # fmt: skip
        for step in range(12):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(F.dropout(model(x), 0.2), y).backward()
            optimizer.step()
        if guards is not None:
            guards.finish()
        states.append([*model.state_dict().values(), *mean.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_strict_stops_before_the_next_step_changes_anything() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guards = watch(model, optimizer, policy="strict", spec={"no_decay": ["0.bias"]})
    optimizer.param_groups[0]["weight_decay"] = 0.5
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(data(0)[0]), data(0)[1]).backward()
    with pytest.raises(Stopped, match="RUN-18 weight-decay at step 0"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert guards.violations[0].where == "0.bias"
    guards.finish()


def test_samples_spread_over_rows_and_columns() -> None:
    matrix = torch.arange(1024.0 * 512).reshape(1024, 512)
    places = spread(matrix)
    assert (
        len(places) == MOST and len({int(p) % 512 for p in places}) > 100 and len({int(p) // 512 for p in places}) > 100
    )
    assert spread(torch.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert fit(matrix.t()) and not fit(matrix[:, ::2]) and not fit(matrix.long()) and not fit(torch.empty(0))
    assert torch.equal(spread(matrix.t()), places)
    seen = [n for step in range(4) for n in window(100, 32, step)]
    assert sorted(seen) == list(range(100)) and list(window(5, 32, 9)) == list(range(5))


def test_a_line_search_that_finds_nothing_moves_nothing() -> None:
    torch.manual_seed(18)
    points = torch.linspace(0, 2, 80).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")
    still = 0
    with watch(model, optimizer, policy="observe") as guards:
        for _ in range(60):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (model(points) - points.cos()).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            before = model[2].bias.detach().clone()
            optimizer.step(closure)  # type: ignore[arg-type]
            still += torch.equal(before, model[2].bias)
    assert still and not [v for v in guards.violations if v.severity == "FAIL"]
