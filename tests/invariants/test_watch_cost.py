"""What the guards cost: which steps are looked at, that nothing of the loop is held after a step, and how cost is counted."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from karat.core.policy import Policy
from karat.invariants.run import cadence
from karat.invariants.run.cadence import APART, CLOSE, EARLY, LATER, LONG, RARE, SETTLED, WIDE, turn
from karat.invariants.run.spec import Spec
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching.checks.finite import Finite
from karat.invariants.runtime.watching.cost import FRAME, TIMED, Cost, Kind
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.reduction import A_TURN, LEAST_NUMBERS, MOST_TENSORS, Turns, part
from karat.invariants.runtime.watching.transfer import numbers_of


def started(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, optimizer, watch(model, optimizer, policy="observe", say=lambda text: None, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[weakref.ref[Tensor], weakref.ref[Tensor]]:
    """One step on a fresh batch; weak references to its input and its output."""
    inputs, targets = torch.randn(32, 64), torch.randint(4, (32,))
    output = model(inputs)
    optimizer.zero_grad()
    F.cross_entropy(output, targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return weakref.ref(inputs), weakref.ref(output)


def large() -> int:
    """Bytes of the tensors that are alive and larger than a sample."""
    gc.collect()
    kept = {t.untyped_storage().data_ptr(): t.nbytes for t in gc.get_objects() if type(t) is Tensor and t.numel() > 256}
    return sum(kept.values())


def test_after_each_step_nothing_of_its_batch_is_held() -> None:
    model, optimizer, guards = started()
    for _ in range(SETTLED + 2 * APART):
        inputs, output = step(model, optimizer)
        gc.collect(0)
        assert inputs() is None and output() is None, f"held after step {guards.step - 1}"
    guards.finish()


def test_what_is_held_does_not_grow_with_the_steps() -> None:
    model, optimizer, guards = started()
    sizes = []
    for _ in range(4):
        for _ in range(SETTLED):
            step(model, optimizer)
        sizes.append(large())
    assert len(set(sizes)) == 1
    guards.finish()
    assert large() <= sizes[0]


def test_the_same_steps_are_looked_at_in_every_run() -> None:
    _, _, guards = started(every=100)
    loop = guards._loop
    assert [s for s in range(300) if loop.dense(s)] == [0, 1, 2, 100, 200]
    assert [s for s in range(300) if loop.looked(s)] == [*range(3), *range(8, 65, 8), 100, 128, 200, 256]
    asked = [s for s in range(700) if not loop.between(s)]
    assert asked[: asked.index(EARLY)] == list(range(EARLY))
    window = loop.spec.window - 1  # where what got no gradient is judged
    assert [s for s in asked if EARLY <= s < SETTLED] == sorted({window, *range(EARLY, SETTLED, CLOSE)})
    assert [s for s in asked if SETTLED <= s < LATER] == sorted({100, *range(SETTLED, LATER, APART)})
    assert [s for s in asked if LATER <= s < LONG] == sorted({200, *range(LATER, LONG, WIDE)})
    assert [s for s in asked if s >= LONG] == sorted({*range(300, 700, 100), *range(LONG, 700, RARE)})
    assert [loop.next_look(s) for s in (3, 17, 21, 64, 65, 289)] == [3, 19, 24, 64, 72, 300]
    assert not any(loop.between(s) for s in range(300) if loop.looked(s))
    guards.finish()


@given(start=st.integers(0, 300), every=st.integers(1, 150), wanted=st.integers(-1, 600), window=st.integers(1, 600),
       first=st.integers(0, 300))  # fmt: skip
def test_the_next_look_is_the_first_step_that_is_not_between_two(
    start: int, every: int, wanted: int, window: int, first: int
) -> None:
    model = nn.Linear(1, 1)
    spec = Spec(window=window)
    loop = Loop(model, [torch.optim.SGD(model.parameters())], spec, Policy.OFF, every, lambda text: None, None, first)
    loop._wanted = wanted
    start += first
    assert loop.next_look(start) == next(s for s in itertools.count(start) if not loop.between(s))


def test_what_takes_turns_meets_everything() -> None:
    asked = [s for s in range(2000) if cadence.asked(s)]
    assert [turn(s) for s in asked] == list(range(len(asked)))  # so that any count of things is gone through in turn
    assert all(turn(s) in (turn(s - 1), turn(s - 1) + 1) for s in range(1, 2000))
    assert {LONG, LATER, SETTLED, EARLY} <= set(asked)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("at", [SETTLED, SETTLED + 1, SETTLED + 3])
def test_a_gradient_that_is_not_finite_is_seen_before_its_step_whichever_that_is(at: int, number: float) -> None:
    model, optimizer, guards = started()
    for k in range(at + 1):
        inputs, targets = torch.randn(32, 64), torch.randint(4, (32,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if k == at:
            for p in model.parameters():
                p.grad.fill_(number)  # type: ignore[union-attr]
        optimizer.step()
    found = [v for v in guards.violations if v.slug == "finite"]
    assert [(v.severity, v.step) for v in found] == [("FAIL", at)]
    guards.finish()


@pytest.mark.parametrize("at", [SETTLED, SETTLED + 1, SETTLED + 3])
def test_gradients_that_are_not_cleared_are_seen_at_their_step_whichever_that_is(at: int) -> None:
    model, optimizer, guards = started()
    for k in range(at + 1):
        if k != at:
            optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(32, 64)), torch.randint(4, (32,))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert [(v.slug, v.severity, v.step) for v in guards.violations] == [("gradient-fresh", "FAIL", at)]
    guards.finish()


def test_a_rate_that_changes_is_judged_at_its_step_whichever_that_is() -> None:
    for at in range(SETTLED + 1, SETTLED + APART):
        model, optimizer, guards = started()
        for k in range(at + 1):
            optimizer.param_groups[0]["lr"] = -1e-3 if k == at else 1e-3
            step(model, optimizer)
        assert [(v.slug, v.step) for v in guards.violations] == [("lr-range", at)]
        guards.finish()


def test_every_gradient_has_its_turn_and_none_is_larger_than_its_share() -> None:
    sizes = [100, 300_000, 50, 20_000, 10, *([2000] * 40)]
    turns = Turns(sizes)
    assert not turns.whole and sorted({place for run in turns.runs for place in run}) == list(range(len(sizes)))
    assert turns.first == [0] and turns.most == sum(sizes) // 8
    assert all(len(run) <= A_TURN and (len(run) == 1 or sum(sizes[i] for i in run) <= turns.most) for run in turns.runs)
    large_one = torch.arange(300_000.0)
    seen = torch.cat([part(large_one, s, turns.most) for s in range(math.ceil(300_000 / turns.most))])
    assert torch.equal(seen, large_one)
    assert Turns([LEAST_NUMBERS]).whole and not Turns([LEAST_NUMBERS + 1]).whole
    assert Turns([1] * MOST_TENSORS).whole and not Turns([1] * (MOST_TENSORS + 1)).whole


def test_numbers_come_over_as_they_are() -> None:
    mixed = [torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor(3), torch.tensor(math.inf)]
    assert numbers_of(mixed) == [float(torch.tensor(0.1)), 0.1, 3.0, math.inf] and numbers_of([]) == []


def test_the_cost_of_a_step_is_that_after_the_first_ones() -> None:
    cost = Cost()
    for kind in [Kind.START] * 2 + [Kind.TURN] * 397:
        if cost.timed:
            start = cost._kind is Kind.START
            cost.add(50.0 if start else 3e-6)
            cost.take("a check", 7.0 if start else 1e-6)
        cost.turn(kind)
    assert cost.start == 150.0
    assert cost.of_a_step() == pytest.approx({"a check": 1.0, FRAME: 2.0}, rel=1e-6)


def test_a_step_that_is_timed_stands_for_those_of_its_kind() -> None:
    cost = Cost()
    of_each = 4 * TIMED[Kind.BETWEEN]
    timed = 0
    for n in range(of_each):
        kind = Kind.LOOK if n == 50 else Kind.BETWEEN
        cost.turn(kind)
        timed += cost.timed
        if cost.timed:
            cost.add(1.0)
            cost.take(kind.name, 1.0)
    cost.turn(Kind.BETWEEN)
    shares = cost.of_a_step()
    assert timed == 5
    assert shares["LOOK"] == pytest.approx(1e6 / of_each)
    assert shares["BETWEEN"] == pytest.approx(1e6 * (1 - 1 / of_each))
    assert Cost().of_a_step() == {}


def test_a_check_that_raises_between_leaves_the_others_on_duty(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, guards = started()
    for _ in range(SETTLED + 1):
        step(model, optimizer)

    def before_step(*given: Any) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(Finite, "before_step", before_step)
    guards._own.clear()
    guards._list()
    step(model, optimizer)  # after a change of duties all are asked
    assert "its check raised" in guards.not_checked["finite"] and "lost" in guards.not_checked["finite"]
    step(model, optimizer)
    report = guards.finish()
    assert [g.checks for g in report if g.invariant == "RUN-11"] == [SETTLED + 3]
    assert "finite" in report.not_checked
