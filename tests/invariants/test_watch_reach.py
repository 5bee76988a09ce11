"""RUN-8 and RUN-34: gradients that are cut off, lost in rounding, or held at zero; and all that only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.run.spec import Spec, Suppression
from karat.invariants.runtime import watch
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watching.grouping import groups, spoken

REACH, THROUGH = "gradient-reach", "straight-through"


class Net(nn.Module):
    """inputs (B, 6) -> (B, 3), through whatever is done to the hidden values."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


def trained(model: nn.Module, steps: int = 5, optimizer: torch.optim.Optimizer | None = None, **given: Any) -> Any:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    guards = watch(model, optimizer, policy="observe", **given)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return guards


def found(guards: Any, *slugs: str) -> list[tuple[str, str, int]]:
    return [(v.slug, v.severity, v.step) for v in guards.violations if v.slug in (slugs or (REACH, THROUGH))]


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda h: h.detach(),
    "data": lambda h: h.data,
    "a new tensor": lambda h: torch.tensor(h.tolist()),
    "numpy": lambda h: torch.from_numpy(h.detach().numpy() * 2),
}
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda h: torch.round(4 * h) / 4,
    "sign": torch.sign,
    "floor": lambda h: torch.floor(8 * h),
    "comparison": lambda h: (h > 0).float(),
    "argmax": lambda h: F.one_hot(h.argmax(-1), 8).float(),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_cut_is_found_at_the_first_step_and_the_module_is_named(cut: Callable[[Tensor], Tensor]) -> None:
    guards = trained(Net(cut))
    assert found(guards) == [(REACH, "FAIL", 0)]
    message = guards.violations[0].observed
    assert "depend on encoder (4 parameters)" in message and "cuts it" in message
    assert guards.violations[0].where == "encoder"


@pytest.mark.parametrize(("name", "step"), STEPS.items())
def test_a_gradient_lost_in_jumps_is_another_rule(name: str, step: Callable[[Tensor], Tensor]) -> None:
    guards = trained(Net(step))
    assert found(guards) == [(THROUGH, "FAIL", 0)]
    told = guards.violations[0].observed
    assert "encoder" in told
    assert name in told if name in ("round", "sign", "floor") else "jumps" in told


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_straight_through_gradients_set_nothing_off(step: Callable[[Tensor], Tensor]) -> None:
    assert found(trained(Net(lambda h: h + (step(h) - h).detach()), steps=25)) == []


def test_quantised_weights_without_a_way_back() -> None:
    model = Net()
    first = model.encoder[0]
    first.forward = lambda x: F.linear(x, torch.round(first.weight * 8) / 8, first.bias)
    guards = trained(model)
    assert found(guards) == [(THROUGH, "FAIL", 0)] and "encoder.0.weight" in guards.violations[0].observed


def test_a_cut_that_begins_later_is_dated_at_its_first_step() -> None:
    calls = {"n": 0}

    def between(h: Tensor) -> Tensor:
        calls["n"] += torch.is_grad_enabled() and h.requires_grad
        return h.detach() if calls["n"] > 7 and h.requires_grad else h

    guards = trained(Net(between), steps=12)
    assert found(guards)[0] == (REACH, "FAIL", 7)


def test_a_strict_run_ends_before_the_first_step_changes_anything() -> None:
    model = Net(lambda h: h.detach())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guards = watch(model, optimizer, policy="strict")
    F.cross_entropy(model(torch.randn(4, 6)), torch.zeros(4, dtype=torch.long)).backward()
    with pytest.raises(Stopped, match="gradient-reach"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert guards.step == 0


def test_submodules_called_by_the_loop_itself() -> None:
    for cut, slug in ((lambda h: h.detach(), REACH), (lambda h: torch.round(4 * h), THROUGH), (lambda h: h, "")):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        guards = watch(model, optimizer, policy="observe")
        for _ in range(4):
            optimizer.zero_grad()
            model.head(cut(model.encoder(torch.randn(8, 6)))).square().mean().backward()
            optimizer.step()
        assert found(guards) == ([(slug, "FAIL", 0)] if slug else [])


def test_two_modules_in_a_list_are_seen_as_well() -> None:
    encoder, head = nn.Linear(6, 8), nn.Linear(8, 3)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
    guards = watch([encoder, head], optimizer, policy="observe")
    head(encoder(torch.randn(8, 6)).detach()).square().mean().backward()
    optimizer.step()
    assert found(guards) == [(REACH, "FAIL", 0)]


def test_no_grad_is_meant_until_the_window_is_over_and_then_it_is_a_warning() -> None:
    class Probe(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.encoder(x)
            return self.head(h)

    guards = trained(Probe(), steps=25)
    assert found(guards) == [(REACH, "WARN", 19)]
    assert "runs under no_grad" in guards.violations[0].observed
    assert found(trained(Probe(), steps=25, spec=Spec(frozen=("encoder",)))) == []


class Gate(nn.Module):
    """A residual branch behind a gate; both may start at zero."""

    def __init__(self, branch_too: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.branch, self.head = nn.Parameter(torch.zeros(())), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)
        if branch_too:
            nn.init.zeros_(self.branch.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gate * self.branch(x))


def test_a_branch_that_starts_at_zero_wakes_and_one_that_holds_itself_there_does_not() -> None:
    assert found(trained(Gate(False), steps=25)) == []
    guards = trained(Gate(True), steps=25)
    assert found(guards) == [(REACH, "FAIL", 0)] and "each holds" in guards.violations[0].observed


def test_a_dead_layer_is_a_warning() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(model[0].bias, -30.0)
    guards = trained(model, steps=6)
    assert found(guards) == [(REACH, "WARN", 0)]
    assert any("dead ReLU" in v.observed for v in guards.violations)


class Experts(nn.Module):
    """One of the experts for each batch, in turn; one is never chosen when `spare`."""

    def __init__(self, spare: bool = False) -> None:
        super().__init__()
        self.experts, self.calls = nn.ModuleList(nn.Linear(6, 3) for _ in range(3)), 0
        self.spare = nn.Linear(6, 3) if spare else None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.experts[self.calls % 3](x)


def test_what_is_not_used_in_a_step_is_fine_and_what_never_is_is_said_once() -> None:
    assert found(trained(Experts(), steps=30)) == []
    guards = trained(Experts(spare=True), steps=30)
    assert found(guards) == [(REACH, "WARN", 19)]
    assert "spare (2 parameters) not used by the loss in 20 steps" in guards.violations[0].observed


def test_a_gradient_that_the_loop_takes_away_is_not_cut() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    guards = watch(model, optimizer, policy="observe")
    for step in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        if step < 6:  # the last layer is kept at first, as in self-distillation
            model.head.weight.grad = None
        optimizer.step()
    assert found(guards) == []


def test_a_teacher_that_follows_the_student_is_not_cut() -> None:
    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.student, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3)
            self.teacher.load_state_dict(self.student.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return (self.student(x) - self.teacher(2 * x).detach()).square().mean()

    model = Taught()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guards = watch(model, optimizer, policy="observe")
    for _ in range(25):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                t.lerp_(s, 0.1)
    assert found(guards) == []


@pytest.mark.parametrize("kept", [False, True])
def test_a_parameter_switched_off_in_the_middle_is_a_warning_and_meant_where_its_gradient_was_taken_away(
    kept: bool,
) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    guards = watch(model, optimizer, policy="observe")
    for step in range(8):
        if step == 5:
            model.encoder.requires_grad_(False)
            model.encoder.zero_grad()
        optimizer.zero_grad(set_to_none=not kept)
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    assert found(guards) == ([] if kept else [(REACH, "WARN", 5)])
    assert all("requires_grad = False" in v.observed for v in guards.violations)


def test_what_is_declared_detached_or_suppressed_is_not_said() -> None:
    assert found(trained(Net(lambda h: h.detach()), spec=Spec(detached=("encoder",)))) == []
    quiet = Suppression(rule=REACH, reason="a linear probe", where="encoder*")
    guards = trained(Net(lambda h: h.detach()), spec=Spec(suppress=(quiet,)))
    assert found(guards) == [] and len(guards.finish().suppressed) == 1


@pytest.mark.parametrize("between", [lambda h: h.detach(), torch.sign, lambda h: F.dropout(h, 0.5)])
def test_a_watched_run_is_the_same_run(between: Callable[[Tensor], Tensor]) -> None:
    def run(watched: bool) -> list[Tensor]:
        model = nn.Sequential(Net(between), nn.BatchNorm1d(3), nn.Dropout(0.2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        guards = watch(model, optimizer, policy="observe") if watched else None
        torch.manual_seed(3)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
        if guards is not None:
            assert not [why for why in guards.finish().not_checked.values() if "raised" in why]
        return [*(t.detach().clone() for t in model.state_dict().values()), torch.rand(3)]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_names_are_gathered_into_modules() -> None:
    names = ["a.0.weight", "a.0.bias", "a.1.weight", "b.weight", "b.bias"]
    assert groups(["a.0.weight", "a.0.bias", "b.bias"], names) == {"a.0": 2, "b.bias": 1}
    assert spoken(names, names) == "a (3 parameters), b (2 parameters)"
