"""RUN-15 and RUN-10: who holds which parameters, and what the terms of a loss train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.run.spec import Spec
from karat.invariants.runtime import watch

HELD, TERMS = "optimizer-parameters", "loss-terms"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def told(guards: Any, slug: str) -> list[tuple[str, int]]:
    return [(v.severity, v.step) for v in guards.violations if v.slug == slug]


def words(guards: Any, slug: str) -> str:
    return " ".join(v.observed for v in guards.violations if v.slug == slug)


def test_a_head_replaced_before_and_during_the_run() -> None:
    model = Net()
    optimizer = adam(model)
    model.head = nn.Linear(8, 3)
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer)
    assert told(guards, HELD) == [("FAIL", 0)]
    assert "head (2 parameters) was replaced after the optimizer was built" in words(guards, HELD)

    model = Net()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer, 5)
    model.head = nn.Linear(8, 3)
    train(model, optimizer, 5, 5)
    assert told(guards, HELD) == [("FAIL", 5)] and "head" in words(guards, HELD)


def test_a_head_replaced_and_given_to_the_optimizer() -> None:
    model = Net()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer, 5)
    model.head = nn.Linear(8, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, 5, 5)
    model.body.requires_grad_(False)
    model.head = nn.Linear(8, 3)
    optimizer.add_param_group({"params": list(model.head.parameters())})
    train(model, optimizer, 5, 10)
    assert told(guards, HELD) == []


def test_the_optimizer_of_another_copy() -> None:
    model = Net()
    optimizer, copied = adam(model), copy.deepcopy(model)
    guards = watch(copied, optimizer, policy="observe")
    train(copied, optimizer)
    assert told(guards, HELD) == [("FAIL", 0)] and "holds none of the model's parameters" in words(guards, HELD)


def test_a_parameter_in_no_group_is_dated_at_its_first_gradient() -> None:
    model = Net()
    optimizer = torch.optim.AdamW([model.body.weight, model.head.weight, model.head.bias])
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer)
    assert told(guards, HELD) == [("FAIL", 0)] and "no optimizer holds body.bias" in words(guards, HELD)


def test_what_others_move_is_not_missing() -> None:
    def by_another_optimizer(model: Net, other: torch.optim.Optimizer) -> None:
        other.step()
        other.zero_grad()

    def by_hand(model: Net, other: Any) -> None:
        with torch.no_grad():
            for p in model.head.parameters():
                p -= 0.1 * p.grad  # type: ignore[operator]
                p.grad = None

    def by_data(model: Net, other: Any) -> None:
        for p in model.head.parameters():
            p.data -= 0.1 * p.grad  # type: ignore[operator]
            p.grad = None

    for move in (by_another_optimizer, by_hand, by_data):
        model = Net()
        optimizer = adam(model.body)
        other = torch.optim.SGD(model.head.parameters(), lr=0.1) if move is by_another_optimizer else None
        guards = watch(model, optimizer, policy="observe")
        for step in range(5):
            optimizer.zero_grad()
            x, y = batch(step)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            move(model, other)  # type: ignore[operator]
        assert told(guards, HELD) == [], move.__name__
        del other


def test_parameters_outside_the_model_that_the_loss_trains() -> None:
    model, scale = Net(), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([*model.parameters(), scale])
    guards = watch(model, optimizer, policy="observe")
    for step in range(4):
        optimizer.zero_grad()
        x, y = batch(step)
        F.cross_entropy(scale * model(x), y).backward()
        optimizer.step()
    assert told(guards, HELD) == []


def test_frozen_parts_and_a_declared_probe() -> None:
    model = Net()
    model.body.requires_grad_(False)
    for optimizer in (adam(model), adam(model.head)):
        guards = watch(model, optimizer, policy="observe")
        train(model, optimizer)
        assert told(guards, HELD) == []
        guards.finish()
    model = Net()
    optimizer = adam(model.head)
    guards = watch(model, optimizer, policy="observe", spec=Spec(frozen=("body",)))
    train(model, optimizer)
    assert told(guards, HELD) == []


def test_only_frozen_ones() -> None:
    model = Net()
    model.head.requires_grad_(False)
    optimizer = adam(model.head)
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer)
    assert told(guards, HELD) == [("FAIL", 0)] and "frozen" in words(guards, HELD)


def test_layers_in_a_plain_list_or_dictionary() -> None:
    class Stack(nn.Module):
        def __init__(self, holder: Callable[[list[nn.Module]], Any]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers, self.head = holder([nn.Linear(6, 8), nn.Linear(8, 8)]), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers.values() if isinstance(self.layers, dict) else self.layers:
                x = layer(x).tanh()
            return self.head(x)

    cases = ((lambda m: m, 1), (lambda m: {str(i): x for i, x in enumerate(m)}, 1), (nn.ModuleList, 0))
    for holder, count in cases:
        model = Stack(holder)
        optimizer = adam(model)
        guards = watch(model, optimizer, policy="observe")
        train(model, optimizer)
        assert told(guards, HELD) == [("FAIL", 0)] * count
        assert not count or "plain list" in words(guards, HELD)


@pytest.mark.filterwarnings("ignore:optimizer contains")
def test_held_twice_in_one_or_two_optimizers() -> None:
    model = Net()
    optimizer = torch.optim.SGD([*model.parameters(), *model.head.parameters()], lr=0.1)
    guards = watch(model, optimizer, policy="observe")
    train(model, optimizer)
    assert told(guards, HELD) == [("FAIL", 0)] and "twice" in words(guards, HELD)

    for between in (False, True):  # each on a gradient of its own is meant
        model = Net()
        first, second = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.head.parameters(), lr=0.1)
        guards = watch(model, [first, second], policy="observe")
        for step in range(4):
            x, y = batch(step)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            first.step()
            if between:
                model.zero_grad()
                F.cross_entropy(model(x + 1), y).backward()
            second.step()
        assert told(guards, HELD) == ([] if between else [("FAIL", 0)])


# -- terms -------------------------------------------------------------------------------------------------------------


def with_terms(make: Callable[[Net, Tensor, Tensor], Mapping[str, Any]], total: Callable[[Any], Tensor],
               steps: int = 4, **given: Any) -> Any:  # fmt: skip
    model = Net()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="observe", **given)
    for step in range(steps):
        optimizer.zero_grad()
        terms = make(model, *batch(step))
        guards.log(losses=terms)
        total(terms).backward()
        optimizer.step()
    return guards


def both(terms: Any) -> Tensor:
    return terms["ce"] + 0.1 * terms["aux"]


def ce(model: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def test_terms_that_train_nothing() -> None:
    detached = with_terms(lambda m, x, y: {"ce": ce(m, x, y), "aux": m.body(x).detach().square().mean()}, both)
    assert told(detached, TERMS) == [("FAIL", 0)] and "'aux' has no gradient" in words(detached, TERMS)

    def on_inputs(m: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": ce(m, x, y), "aux": x.clone().requires_grad_().square().mean()}

    apart = with_terms(on_inputs, both)
    assert told(apart, TERMS) == [("FAIL", 0)] and "reaches no parameter" in words(apart, TERMS)

    left_out = with_terms(lambda m, x, y: {"ce": ce(m, x, y), "aux": m.body(x).square().mean()}, lambda t: t["ce"])
    assert told(left_out, TERMS) == [("FAIL", 0)] and "computed but not in the total" in words(left_out, TERMS)

    weightless = with_terms(lambda m, x, y: {"ce": ce(m, x, y), "aux": 0 * m.body(x).square().mean()}, both, 25)
    assert told(weightless, TERMS) == [("WARN", 0)] and "weight is zero" in words(weightless, TERMS)


def test_terms_that_are_fine() -> None:
    def apart(m: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        aux = m.body(x).square()
        return {"ce": ce(m, x, y), "aux": aux.mean(), "sum": aux.sum()}

    fine = with_terms(apart, lambda t: t["ce"] + t["sum"])  # "aux" is the same term, averaged apart
    assert told(fine, TERMS) == []
    declared = with_terms(lambda m, x, y: {"ce": ce(m, x, y), "aux": m.body(x).detach().mean()}, both,
                          spec=Spec(detached=("aux",)))  # fmt: skip
    assert told(declared, TERMS) == []
    absent = with_terms(lambda m, x, y: {"ce": ce(m, x, y), "aux": torch.zeros(())}, both, 25)
    assert told(absent, TERMS) == []


def test_numbers_and_validation_are_not_judged() -> None:
    model = Net()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="observe")
    for step in range(4):
        optimizer.zero_grad()
        loss = ce(model, *batch(step))
        guards.log(loss=loss, losses={"ce": loss.item(), "aux": loss.detach(), "other": loss.detach()})
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            guards.log(losses={"ce": ce(model, *batch(99)), "aux": ce(model, *batch(98))})
    assert told(guards, TERMS) == []
    assert TERMS in guards.finish().not_checked


def test_each_term_with_a_backward_of_its_own_and_accumulated() -> None:
    model = Net()
    optimizer = adam(model)
    guards = watch(model, optimizer, policy="observe")
    for step in range(4):
        optimizer.zero_grad()
        for part in range(3):
            x, y = batch(10 * step + part)
            terms = {"ce": ce(model, x, y), "aux": model.body(x).square().mean()}
            guards.log(losses=terms)
            for term in terms.values():
                (term / 3).backward()
        optimizer.step()
    assert guards.violations == []


def test_two_networks_with_their_own_terms() -> None:
    maker, judge = nn.Linear(6, 6), nn.Linear(6, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (maker, judge)]
    guards = watch([maker, judge], optimizers, policy="observe")
    for step in range(30):
        x, _ = batch(step)
        for optimizer, name in zip(optimizers, ("maker", "judge"), strict=True):
            terms = {"judge": judge(maker(x).detach()).mean() - judge(x).mean(), "maker": -judge(maker(x)).mean()}
            guards.log(losses=terms)
            for o in optimizers:
                o.zero_grad()
            terms[name].backward()
            optimizer.step()
    assert told(guards, TERMS) == []
