"""RUN-11 and RUN-9: gradients of another time, and numbers that are none; and the loops that look like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.runtime import watch
from karat.invariants.runtime.watching.between import Between

FRESH, FINITE = "gradient-fresh", "finite"


def setup(**given: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, optimizer, watch(model, optimizer, policy="observe", **given)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    return model(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))).square().mean()


def found(guards: Any, slug: str) -> list[tuple[str, int, str]]:
    return [(v.severity, v.step, v.observed) for v in guards.violations if v.slug == slug]


def only(guards: Any, slug: str, severity: str, step: int, words: str) -> None:
    told = found(guards, slug)
    assert [t[:2] for t in told] == [(severity, step)], told
    assert words in told[0][2]


@pytest.mark.parametrize("kept", [1, 3])
def test_gradients_that_are_not_cleared(kept: int) -> None:
    model, optimizer, guards = setup()
    for step in range(8):
        if step % (kept + 1) == 0:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    only(guards, FRESH, "FAIL", 1, "zero_grad() is missing")


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_too_early(to_none: bool) -> None:
    model, optimizer, guards = setup()
    for step in range(5):
        loss_of(model, step).backward()
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
    only(guards, FRESH, "FAIL", 0, "cleared between backward and step")


def test_backward_is_missing() -> None:
    model, optimizer, guards = setup()
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step)
        optimizer.step()
    only(guards, FRESH, "FAIL", 0, "no backward since the last step")


def test_a_gradient_is_applied_again_also_when_it_is_clipped_again() -> None:
    for clip in (False, True):
        model, optimizer, guards = setup()
        loss_of(model).backward()
        for _ in range(3):
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        words = (
            "of the same norm was written by hand or clipped again" if clip else "the same gradient is applied again"
        )
        only(guards, FRESH, "WARN" if clip else "FAIL", 1, words)


def test_normalised_gradients_that_are_written_by_hand_are_no_failure() -> None:
    model, optimizer, guards = setup()
    for step in range(150):
        given = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
        for p, g in zip(model.parameters(), given, strict=True):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.copy_(g / g.norm())
        optimizer.step()
    assert not [v for v in guards.violations if v.severity == "FAIL"]


def test_backward_twice_through_one_graph() -> None:
    model, optimizer, guards = setup()
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    only(guards, FRESH, "FAIL", 0, "added twice: 2 backward passes to 1 forward")


def test_backward_twice_where_the_loop_calls_the_parts() -> None:
    for twice in (True, False):
        model, optimizer, guards = setup()
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            loss = model[2](model[1](model[0](x))).square().mean()
            loss.backward(retain_graph=True)
            (loss if twice else model[2](model[1](model[0](x + 1))).mean()).backward()
            optimizer.step()
        assert bool(found(guards, FRESH)) is twice


def test_what_was_left_before_the_first_step_is_a_warning() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss_of(model).backward()
    guards = watch(model, optimizer, policy="observe")
    for step in range(4):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    only(guards, FRESH, "WARN", 0, "from before the first step")


def test_a_frozen_parameter_keeps_its_old_gradient() -> None:
    model, optimizer, guards = setup()
    for step in range(6):
        model[0].requires_grad_(step < 3)
        for p in model.parameters():
            p.grad = None if p.requires_grad else p.grad
        loss_of(model, step).backward()
        optimizer.step()
    told = found(guards, FRESH)
    assert told[0][:2] == ("FAIL", 3) and "still the gradient of step 2" in told[0][2]


def test_the_gradients_of_another_network_are_cleared_before_its_own_turn() -> None:
    """Two networks against each other: the other's backward leaves gradients that are cleared before use."""
    torch.manual_seed(0)
    maker, judge = nn.Linear(6, 6), nn.Linear(6, 1)
    first, second = torch.optim.SGD(maker.parameters(), lr=0.01), torch.optim.SGD(judge.parameters(), lr=0.01)
    guards = watch([maker, judge], [first, second], policy="observe")
    for step in range(25):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        second.zero_grad()
        (judge(maker(x).detach()).mean() - judge(x).mean()).backward()
        second.step()
        first.zero_grad()
        (-judge(maker(x)).mean()).backward()
        first.step()
    assert not [v for v in guards.violations if v.severity == "FAIL"]


def test_clean_loops_that_look_odd() -> None:
    def assigned(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss_of(model, step), list(model.parameters())), strict=True
        ):
            p.grad = g

    def copied(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss_of(model, step), list(model.parameters())), strict=True
        ):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.data.copy_(g)

    def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad(set_to_none=False)
        for part in range(3):
            loss_of(model, part).backward()

    def same_batch(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        for _ in range(2):
            (loss_of(model) / 2).backward()

    def sharpness(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            moves = [(p, 0.01 * p.grad) for p in model.parameters() if p.grad is not None]
            for p, m in moves:
                p.add_(m)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for p, m in moves:
                p.sub_(m)

    def now_and_then_skipped(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step % 5 == 4:
            optimizer.zero_grad()

    for loop in (assigned, copied, accumulated, same_batch, sharpness, now_and_then_skipped):
        model, optimizer, guards = setup()
        for step in range(12):
            loop(model, optimizer, step)
            optimizer.step()
        assert guards.violations == [], loop.__name__


def test_a_step_before_everything_to_please_the_scheduler() -> None:
    model, optimizer, guards = setup()
    optimizer.step()
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    assert guards.violations == []


# -- finite ------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_begins_in_the_backward() -> None:
    model, optimizer, guards = setup()
    for step in range(6):
        optimizer.zero_grad()
        out = model(torch.randn(4, 6))
        (out - (out.detach() if step == 3 else 0)).square().sum().sqrt().backward()
        optimizer.step()
    only(guards, FINITE, "FAIL", 3, "begins in the backward")


def test_a_batch_with_nan_is_named_as_such() -> None:
    model, optimizer, guards = setup()
    for step in range(6):
        x = torch.randn(4, 6)
        x[0, 0] = torch.nan if step == 4 else 0.0
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    only(guards, FINITE, "FAIL", 4, "the batch itself")


def test_the_first_module_that_is_not_finite_is_named_and_nothing_is_disturbed() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x.abs())

    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), Log(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    guards = watch(model, optimizer, policy="observe")
    for step in range(3):
        if step == 2:
            nn.init.zeros_(model[1].weight)
        optimizer.zero_grad()
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
    told = found(guards, FINITE)
    assert told[0][:2] == ("FAIL", 2) and "that of 2" in told[0][2]
    assert int(model[1].num_batches_tracked) == 3


def test_an_update_that_breaks_the_parameters_is_dated_at_its_own_step() -> None:
    model, optimizer, guards = setup()
    for step in range(6):
        optimizer.param_groups[0]["lr"] = float("inf") if step == 3 else 0.05
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    only(guards, FINITE, "FAIL", 3, "since the update of step 3")


def test_the_last_update_is_looked_at_in_the_end() -> None:
    model, optimizer, guards = setup()
    loss_of(model).backward()
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.step()
    guards.finish()
    only(guards, FINITE, "FAIL", 0, "after the last step")


def test_a_logged_loss_before_and_after_the_step() -> None:
    for late in (False, True):
        model, optimizer, guards = setup()
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            told = float("nan") if step == 2 else 1.0
            if not late:
                guards.log(loss=torch.tensor(told))
            optimizer.step()
            if late:
                guards.log(loss=told)
        only(guards, FINITE, "FAIL", 2, "logged loss is nan")


def test_what_is_skipped_is_no_finding() -> None:
    model, optimizer, guards = setup()
    for step in range(6):
        optimizer.zero_grad()
        x = torch.full((4, 6), torch.inf) if step == 3 else torch.randn(4, 6)
        loss = model(x).square().mean() + (torch.nan if step == 3 else 0)
        guards.log(loss=loss)
        loss.backward()
        if torch.isfinite(loss):
            optimizer.step()
    assert guards.violations == []


def test_a_norm_that_overflows_is_no_infinity() -> None:
    model, optimizer, guards = setup()
    optimizer.param_groups[0]["lr"] = 0.0
    for step in range(3):
        optimizer.zero_grad()
        (loss_of(model, step) * 1e25).backward()
        for p in model.parameters():
            p.grad = p.grad.clamp(-3e38, 3e38) * 1e10 if p.grad is not None else None
            p.grad = p.grad.clamp(-3e38, 3e38) if p.grad is not None else None
        optimizer.step()
    assert found(guards, FINITE) == []


def test_a_fused_optimizer_under_a_scaler_leaves_the_step_out_itself() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    guards = watch(model, optimizer, policy="observe")
    loss_of(model).backward()
    for p in model.parameters():
        p.grad.fill_(torch.inf)  # type: ignore[union-attr]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # as GradScaler.step hands them over
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found(guards, FINITE) == []


@pytest.mark.parametrize("at", [17, 30, 66, 130])
def test_a_parameter_that_was_exchanged_between_two_looks_is_not_stale(at: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with watch(model, optimizer, policy="observe") as guards:
        for step in range(at + 40):
            if step == at:
                gone = {id(p) for p in model[2].parameters()}
                model[2] = nn.Linear(8, 3)
                group = optimizer.param_groups[0]
                group["params"] = [p for p in group["params"] if id(p) not in gone] + list(model[2].parameters())
            loss = F.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert guards.violations == []


@pytest.mark.parametrize("begin", [0, 70, 130])
def test_gradients_of_a_part_that_are_not_cleared_are_seen_at_the_next_turn(begin: int) -> None:
    model, optimizer, guards = setup()
    for step in range(164):
        (model[0] if step >= begin else model).zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    told = found(guards, FRESH)
    assert [t[0] for t in told] == ["FAIL"]
    assert told[0][1] == {0: 1, 70: 72, 130: 160}[begin]


def each(zeros: bool, batches: int, steps: int = 200, **given: Any) -> Any:
    """Guards of a loop that accumulates, and clears by zeros or by None, which goes on for some steps."""
    model, optimizer, guards = setup(**given)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=not zeros)
        for k in range(batches):
            loss_of(model, 3 * step + k).backward()
        optimizer.step()
    return guards


def test_heads_that_take_turns_and_are_cleared_by_zeros_are_fresh() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "c": nn.Linear(8, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guards = watch(model, optimizer, policy="observe")
    for step in range(164):
        optimizer.zero_grad(set_to_none=False)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        for head in ("b", "c")[: 1 + step % 2]:
            model[head](torch.tanh(model["a"](x))).square().mean().backward()
        optimizer.step()
    assert found(guards, FRESH) == []


@pytest.mark.parametrize(("zeros", "batches"), [(True, 1), (False, 3), (True, 2)])
def test_accumulation_and_zeros_have_their_quiet_steps(zeros: bool, batches: int, monkeypatch: Any) -> None:
    quiet: list[int] = []
    after = Between.after

    def counted(self: Between) -> None:
        quiet.append(self.place)
        after(self)

    monkeypatch.setattr(Between, "after", counted)
    for given in ({}, {"spec": {"accumulation": batches}}):
        quiet.clear()
        assert each(zeros, batches, **given).violations == []
        assert len(quiet) > 130


@pytest.mark.parametrize(("zeros", "batches"), [(False, 1), (True, 1), (False, 3)])
def test_gradients_that_are_no_longer_cleared_are_seen_in_that_very_step(zeros: bool, batches: int) -> None:
    model, optimizer, guards = setup()
    for step in range(150):
        if step < 141:
            optimizer.zero_grad(set_to_none=not zeros)
        for k in range(batches):
            loss_of(model, 3 * step + k).backward()
        optimizer.step()
    only(guards, FRESH, "FAIL", 141, "zero_grad() is missing")


def test_a_graph_that_is_counted_twice_is_seen_in_that_very_step() -> None:
    model, optimizer, guards = setup()
    for step in range(150):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        if step >= 141:
            loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    only(guards, FRESH, "FAIL", 141, "added twice")
