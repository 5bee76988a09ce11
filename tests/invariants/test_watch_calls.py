"""What public training scripts do that toy loops do not: parts that are called themselves, targets given to the model,
models that are called with names, saved whole, run in a recurrent loop, or whose layers run again in a backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from karat.invariants.runtime import Watch, watch
from karat.invariants.runtime.watching.checks.reach import Reach
from karat.invariants.runtime.watching.seams import MOST_CALLS


def batch(step: int, rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 8, generator=generator), torch.randint(0, 4, (rows,), generator=generator)


class Holder(nn.Module):
    """Two parts; `forward` puts them together, `loss` does, too, without it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 16), nn.ReLU())]
        )
        self.head = nn.Linear(16, 4)

    def features(self, x: Tensor) -> Tensor:
        for part in self.body:
            x = part(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor, *, cut: bool = False) -> Tensor:
        features = self.features(x)
        return F.cross_entropy(self.head(features.detach() if cut else features), y)


def quiet(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Watch:
    return watch(model, optimizer, policy="observe", **options)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def found(guards: Watch) -> list[tuple[str, str, int]]:
    return [(v.severity, v.slug, v.step) for v in guards.violations]


@pytest.mark.parametrize("cut", [True, False])
def test_parts_that_the_loop_calls_itself_are_watched(cut: bool) -> None:
    model = Holder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    guards = quiet(model, optimizer, spec={"accumulation": 2})
    for step in range(6):
        optimizer.zero_grad()
        for part in range(2):
            (model.loss(*batch(2 * step + part), cut=cut) / 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert guards._loop.forwards == 12  # of any one part: the forwards of the model
    assert found(guards) == ([("FAIL", "gradient-reach", 0)] if cut else [])
    report = guards.finish()
    assert {"eval-determinism", "inputs", "accumulation"} <= {g.slug for g in report.guards if g.state == "held"}
    assert not hooks(model)


def test_parts_are_let_go_once_the_model_itself_is_called_in_training() -> None:
    model = Holder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    guards = quiet(model, optimizer)
    assert hooks(model) > 8
    for step in range(5):
        x, y = batch(step)
        with torch.no_grad():
            model(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with pytest.raises(RuntimeError):
            model(x[:, :3])  # a forward that raises is over, too
    assert guards._loop.forwards == 5 and hooks(model) == 1 and not guards.violations
    guards.finish()
    assert not hooks(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_run_again_in_a_backward_pass_are_no_forwards(reentrant: bool) -> None:
    class Checkpointed(Holder):
        def features(self, x: Tensor) -> Tensor:
            for part in self.body:
                x = checkpoint(part, x.requires_grad_(), use_reentrant=reentrant)  # type: ignore[assignment]
            return x

    model = Checkpointed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    guards = quiet(model, optimizer, spec={"accumulation": 1})
    for step in range(4):
        optimizer.zero_grad()
        model.loss(*batch(step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert guards._loop.forwards == 4 and not [v for v in guards.violations if v.severity == "FAIL"]


class WithTargets(nn.Module):
    """As language models are often written: the loss is made in forward, of targets that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        return logits, F.cross_entropy(logits, y)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_targets_that_are_given_to_the_model_have_an_effect_and_names_are_no_obstacle(
    named: bool, divided: bool
) -> None:
    model = WithTargets()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    guards = quiet(model, optimizer, spec={"accumulation": 3})
    for step in range(4):
        optimizer.zero_grad()
        for part in range(3):
            x, y = batch(3 * step + part)
            loss = model(x=x, y=y)[1] if named else model(x, y)[1]
            (loss / 3 if divided else loss).backward()
        optimizer.step()
    assert found(guards) == ([] if divided else [("FAIL", "accumulation", 0)])
    assert "inputs" in {g.slug for g in guards.finish().guards if g.state == "held"}


def test_a_recurrent_loop_is_noted_up_to_a_limit() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.head = nn.GRUCell(1, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 6)
            for column in x.split(1, dim=1):
                state = self.cell(column, state)
            return self.head(state)  # type: ignore[no-any-return]

    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    guards = quiet(model, optimizer)
    reach = next(check for check in guards._checks if isinstance(check, Reach))
    x, y = torch.randn(5, 40 * MOST_CALLS // 8, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    assert 0 < len(reach._seams._given) <= MOST_CALLS and len(reach._seams._inputs) <= 2 * MOST_CALLS
    optimizer.step()
    assert not guards.finish().failures
