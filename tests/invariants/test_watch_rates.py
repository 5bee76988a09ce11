"""RUN-2 to RUN-7: learning rates against their declaration, their own past and their schedulers, on small live loops."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from karat.core.report import Violation
from karat.invariants.run import schedule_causes
from karat.invariants.run.rate_history import History
from karat.invariants.runtime import Stopped, watch
from karat.invariants.runtime.watching.attached import look_through
from karat.invariants.runtime.watching.between import Between

OURS = {"lr-schedule", "lr-decay", "warmup-ends", "scheduler-steps", "lr-range", "lr-groups"}
Rate = Callable[[int], float]
KEPT: list[Any] = []
"""Schedulers that a loop makes on the way."""


@pytest.fixture(autouse=True)
def counted_anew() -> None:
    """Other tests name the classes of schedulers and scalers, and let go of the names, so that their counts tell nothing."""
    look_through()


def groups_of(model: nn.Sequential, rates: tuple[float, ...]) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": layer.parameters(), "lr": r} for layer, r in zip(model, rates, strict=True)])


def loop(
    steps: int,
    scheduler_of: Callable[[torch.optim.Optimizer], Any] | None = None,
    rate: Rate | None = None,
    *,
    every: int = 1,
    times: int = 1,
    batches: int = 1,
    before: bool = False,
    optimizer_of: Callable[[nn.Sequential], torch.optim.Optimizer] | None = None,
    change: Callable[[int, torch.optim.Optimizer], None] | None = None,
    **declared: Any,
) -> list[Violation]:
    """The findings of these rules on a loop whose rate is a scheduler's or `rate`'s, of all groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = optimizer_of(model) if optimizer_of else torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = scheduler_of(optimizer) if scheduler_of else None
    guards = watch(model, optimizer, **{"policy": "observe", **declared})
    with warnings.catch_warnings(), guards:
        warnings.simplefilter("ignore", UserWarning)
        for step in range(steps):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            if change is not None:
                change(step, optimizer)
            optimizer.zero_grad()
            for _ in range(batches):
                model(torch.randn(4, 3)).square().mean().backward()
            if before and scheduler is not None:
                scheduler.step()
            optimizer.step()
            if not before and scheduler is not None and (step + 1) % every == 0:
                for _ in range(times):
                    scheduler.step()
    return [v for v in guards.violations if v.slug in OURS]


def one(found: list[Violation], slug: str, severity: str, step: int, *words: str) -> None:
    assert [(v.slug, v.severity, v.step) for v in found] == [(slug, severity, step)], found
    assert all(word in found[0].message for word in words), found[0].message


def cosine(total: int, clamp: bool = True) -> Rate:
    return lambda step: 0.05 * (1 + math.cos(math.pi * (min(step, total) if clamp else step) / total)) + 0.01


# -- RUN-2 ------------------------------------------------------------------------------------------------------------


def test_a_rate_that_is_the_declared_one_holds_past_its_end() -> None:
    assert loop(40, rate=cosine(20), spec={"schedule": cosine(20)}) == []
    declared = {"kind": "cosine", "peak": 0.1, "floor": 0.01, "warmup": 4, "total": 20}
    for first in (0, 1):  # both ways to count the warm-up, where it was not said which is meant

        def rate(step: int, first: int = first) -> float:
            done = min(1.0, (step - 4) / 16)
            return 0.1 * (step + first) / 4 if step < 4 else 0.01 + 0.045 * (1 + math.cos(math.pi * done))

        assert loop(30, rate=rate, spec={"schedule": declared}) == []


@pytest.mark.parametrize(
    ("used", "batches", "step", "words"),
    [
        (lambda f: lambda s: f(s + 1), 1, 0, "one step early"),
        (lambda f: lambda s: f(max(s - 1, 0)), 1, 1, "has not moved since step 0"),
        (lambda f: lambda s: f(2 * s), 1, 1, "2 times too fast"),
        (lambda f: lambda s: f(4 * s), 4, 1, "each of the 4 batches"),
        (lambda f: lambda s: f(s) / 2, 2, 0, "an update takes 2 batches"),
        (lambda f: lambda s: f(s) * 3, 1, 0, "3 times it"),
        (lambda f: lambda s: f(0), 1, 1, "has not moved"),
    ],
)
def test_a_rate_that_is_not_is_named_by_its_cause(used: Any, batches: int, step: int, words: str) -> None:
    def declared(at: int) -> float:
        return 0.1 * max(0.0, 1 - at / 60) ** 2 + 0.001

    every = loop(12, rate=used(declared), batches=batches, spec={"schedule": declared})
    found = [v for v in every if v.slug == "lr-schedule"]
    one(found, "lr-schedule", "FAIL", step, words)


def test_past_its_end_the_declared_rate_stays() -> None:
    found = loop(30, rate=cosine(20, clamp=False), spec={"schedule": cosine(20), "total_steps": 40})
    assert ("lr-schedule", "FAIL", 21) in [(v.slug, v.severity, v.step) for v in found]
    linear = {"kind": "linear", "peak": 0.1, "floor": 0.02, "total": 10}
    found = loop(30, rate=lambda s: 0.1 - 0.008 * min(s, 12), spec={"schedule": linear})
    one(found, "lr-schedule", "FAIL", 11, "below its floor")


def test_a_resumed_run_and_skipped_updates_may_count_as_their_state_says() -> None:
    def resumed(model: nn.Sequential) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for parameter in model.parameters():
            optimizer.state[parameter]["step"] = torch.tensor(7.0)
            optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            optimizer.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        return optimizer

    assert loop(20, rate=lambda s: cosine(40)(s + 7), optimizer_of=resumed, spec={"schedule": cosine(40)}) == []
    assert loop(20, rate=lambda s: cosine(40)(s + 7), spec={"schedule": cosine(40)}) != []


def test_causes_are_decided_by_all_points() -> None:
    def declared(step: int) -> float:
        return 1.0 / (1 + step)

    points = [(s, declared(3 * s)) for s in range(5)]
    assert "3 times too fast" in schedule_causes.cause(declared, points)
    assert "2 times too slow" in schedule_causes.cause(declared, [(s, declared(s // 2)) for s in range(9)])
    assert "one step late" in schedule_causes.cause(declared, [(s, declared(max(s - 1, 0))) for s in range(3)])
    assert schedule_causes.cause(declared, [(0, 1.0), (1, 0.5), (2, 0.9)]) == ""
    assert math.isnan(schedule_causes.safely(lambda step: 1 / 0, 3))


# -- RUN-3 ------------------------------------------------------------------------------------------------------------


def test_cosine_annealing_past_its_length_fails_where_it_first_climbs() -> None:
    found = loop(20, lambda o: schedulers.CosineAnnealingLR(o, T_max=8, eta_min=0.01))
    one(found, "lr-decay", "FAIL", 9, "T_max = 8", "9 times")
    assert loop(20, lambda o: schedulers.CosineAnnealingLR(o, T_max=8), spec={"restarts": "any"}) == []
    with pytest.raises(Stopped, match="lr-decay at step 9"):
        loop(20, lambda o: schedulers.CosineAnnealingLR(o, T_max=8), policy="strict")


def test_a_cosine_by_hand_warns_and_fails_past_a_declared_total() -> None:
    one(loop(30, rate=cosine(10, clamp=False)), "lr-decay", "WARN", 11, "not clamped")
    found = loop(15, rate=cosine(10, clamp=False), spec={"suppress": [{"rule": "step-budget", "reason": "a test"}]},
                 total_steps=10)  # fmt: skip
    one(found, "lr-decay", "FAIL", 11, "past the declared total of 10")
    assert loop(30, rate=cosine(10)) == []


def again(step: int, optimizer: torch.optim.Optimizer) -> None:
    if step == 6:
        KEPT.append(schedulers.LambdaLR(optimizer, lambda n: 1 - n / 50))


def cut(step: int, optimizer: torch.optim.Optimizer) -> None:
    if step == 6:
        optimizer.param_groups[0]["lr"] *= 0.1


def test_a_new_scheduler_and_a_cut_that_is_undone_are_named() -> None:
    falling = functools.partial(schedulers.LambdaLR, lr_lambda=lambda n: 1 - n / 50)
    one(loop(10, falling, change=again), "lr-decay", "WARN", 6, "a new LambdaLR")
    one(loop(10, falling, change=cut), "lr-decay", "WARN", 7, "set by hand at step 6")


def hard_restarts(step: int) -> float:
    return 1 - (step % 10) / 20


@pytest.mark.parametrize(
    "scheduler_of",
    [
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=7),
        lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=4),
        lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=41),
        lambda o: schedulers.SequentialLR(
            o, [schedulers.LinearLR(o, 0.1, total_iters=5), schedulers.CosineAnnealingLR(o, 40)], milestones=[5]
        ),
        lambda o: schedulers.LambdaLR(o, functools.partial(hard_restarts)),
        lambda o: schedulers.CosineAnnealingLR(o, 40),
        lambda o: schedulers.StepLR(o, 10),
        lambda o: schedulers.LinearLR(o, 0.1, total_iters=10),
    ],
)
def test_what_rises_by_design_is_left_alone(scheduler_of: Any) -> None:
    assert loop(40, scheduler_of) == []


def test_declared_restarts_are_allowed_and_others_are_not() -> None:
    def restarting(step: int) -> float:
        return 0.1 * (1 - (step % 10) / 20)

    assert loop(30, rate=restarting, spec={"restarts": [10, 20]}) == []
    one(loop(30, rate=restarting, spec={"restarts": [10]}), "lr-decay", "WARN", 20)
    assert loop(30, rate=lambda s: 0.1 if s < 10 or s > 20 else 0.01) == []  # one fall, one rise: phases


def test_history_tells_rises_of_a_decay_from_those_before_it() -> None:
    history = History()
    assert not any(history.take(s, r) for s, r in enumerate([1, 2, 3, 3, 2.5, 2, 1.5]))
    assert history.take(7, 1.6) and not history.warming(7)
    rising = History()
    assert not any(rising.take(s, 0.1 * 1.5**s) for s in range(9))
    assert rising.warming(9) and rising.geometric and not rising.warming(12)


# -- RUN-4, RUN-5 -----------------------------------------------------------------------------------------------------


def test_a_warm_up_that_does_not_end() -> None:
    declared = {"kind": "linear", "peak": 0.1, "warmup": 5, "total": 50}
    found = loop(12, rate=lambda s: 0.1 * min(1, s / 10), spec={"schedule": declared})
    assert ("warmup-ends", "FAIL", 7) in [(v.slug, v.severity, v.step) for v in found]
    slow = functools.partial(schedulers.LambdaLR, lr_lambda=lambda n: min(1.0, (n + 1) / 100))
    one(loop(40, slow, total_steps=40), "warmup-ends", "WARN", 21, "more than half of the 40 steps")
    one(loop(40, slow), "warmup-ends", "WARN", 40, "ended while the learning rate still rose")
    assert loop(12, slow) == []  # a trial
    long = functools.partial(schedulers.OneCycleLR, max_lr=0.1, total_steps=200)
    one(loop(40, long), "warmup-ends", "WARN", 40, "OneCycleLR")
    late = functools.partial(schedulers.OneCycleLR, max_lr=0.1, total_steps=41, pct_start=0.8)
    assert loop(40, late, total_steps=40) == []
    assert loop(40, functools.partial(schedulers.LambdaLR, lr_lambda=lambda n: min(1.0, (n + 1) / 20))) == []
    assert loop(40, rate=lambda s: 1e-6 * 1.2**s) == []  # a range test


def test_a_scheduler_that_is_stepped_too_often() -> None:
    falling = functools.partial(schedulers.LambdaLR, lr_lambda=lambda n: 0.99**n)
    one(loop(10, falling, times=2), "scheduler-steps", "WARN", 1, "2 times since the last update")
    one(loop(10, falling, times=4, batches=4), "scheduler-steps", "WARN", 2, "each of the 4 batches")
    one(loop(10, falling, before=True), "scheduler-steps", "WARN", 0, "before the optimizer")
    long = functools.partial(schedulers.CosineAnnealingLR, T_max=20)
    suppress = {"suppress": [{"rule": "step-budget", "reason": "a test"}]}
    one(loop(10, long, times=2, total_steps=20, spec=suppress), "scheduler-steps", "FAIL", 1)
    assert loop(30, falling) == loop(30, falling, every=10) == loop(30, falling, batches=4) == []


def test_a_scheduler_that_is_not_stepped() -> None:
    never = functools.partial(schedulers.CosineAnnealingLR, T_max=40)
    one(loop(40, never, every=99), "scheduler-steps", "WARN", 40, "never stepped")
    one(loop(40, never, every=99, total_steps=40), "scheduler-steps", "WARN", 10, "its length is that of the run")
    assert loop(12, never, every=99) == []  # the first epoch is not over


def test_a_scheduler_of_another_optimizer() -> None:
    model = nn.Linear(2, 1)
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = schedulers.StepLR(first, 5)
    for given in (True, False):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        extra = {"scheduler": scheduler} if given else {}
        with warnings.catch_warnings(), watch(model, optimizer, policy="observe", **extra) as guards:
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                scheduler.step()
        found = [v for v in guards.violations if v.slug in OURS]
        one(found, "scheduler-steps", "FAIL" if given else "WARN", 0 if given else 1, "another optimizer")


# -- RUN-6, RUN-7 -----------------------------------------------------------------------------------------------------


def test_rates_outside_their_range() -> None:
    one(loop(9, rate=lambda s: 0.1 - 0.02 * s), "lr-range", "FAIL", 6, "below zero")
    one(loop(5, rate=lambda s: math.nan if s == 2 else 0.1), "lr-range", "FAIL", 2, "nan")
    one(loop(5, rate=lambda s: 0.2 if s == 3 else 0.1, spec={"lr_range": (0.01, 0.1)}), "lr-range", "FAIL", 3, "above")
    assert loop(5, rate=lambda s: 0.1 * (1 + 1e-9), spec={"lr_range": (0.01, 0.1)}) == []


def test_rates_of_zero() -> None:
    one(loop(8, rate=lambda s: 0.1 * (s // 5)), "lr-range", "WARN", 1, "0 in all groups since step 0")
    one(loop(20, rate=lambda s: max(0.0, 0.1 - 0.01 * s)), "lr-range", "WARN", 14, "since step 10")
    assert loop(12, rate=lambda s: 0.1 * min(s, 5)) == []  # one update at 0
    frozen = functools.partial(groups_of, rates=(0.0, 0.1))
    assert loop(12, optimizer_of=frozen) == []


def first_only(step: int, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 20)


def level(step: int, optimizer: torch.optim.Optimizer) -> None:
    if step == 8:
        for group in optimizer.param_groups:
            group["lr"] = 0.05


def test_groups_that_do_not_follow() -> None:
    equal, unequal = (functools.partial(groups_of, rates=r) for r in ((0.1, 0.1), (0.1, 1.0)))
    one(loop(6, optimizer_of=equal, change=first_only), "lr-groups", "WARN", 2, "group 1 stays at 0.1")
    one(loop(12, optimizer_of=unequal, change=level), "lr-groups", "WARN", 8, "their ratios are lost")
    ratios = {"group_ratios": (1.0, 10.0)}
    one(loop(12, optimizer_of=unequal, change=level, spec=ratios), "lr-groups", "FAIL", 8, "10 is declared")
    falling = functools.partial(schedulers.LambdaLR, lr_lambda=lambda n: 0.99**n)
    assert loop(12, falling, optimizer_of=unequal, spec=ratios) == []
    floor = functools.partial(schedulers.CosineAnnealingLR, T_max=12, eta_min=0.01)
    assert loop(12, floor, optimizer_of=unequal) == []


def test_tensor_rates_and_optimizers_without_a_rate() -> None:
    tensor = lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))  # noqa: E731
    one(loop(20, lambda o: schedulers.CosineAnnealingLR(o, T_max=8), optimizer_of=tensor), "lr-decay", "FAIL", 9)

    class Plain(torch.optim.Optimizer):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model.parameters(), {})

        def step(self, closure: Any = None) -> None:
            return None

    assert loop(8, optimizer_of=Plain) == []


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_groups_of_several_rates_that_fall_together_have_their_quiet_steps(floor: float, monkeypatch: Any) -> None:
    quiet: list[int] = []
    after = Between.after

    def counted(self: Between) -> None:
        quiet.append(self.place)
        after(self)

    monkeypatch.setattr(Between, "after", counted)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = groups_of(model, (1e-2, 1e-3))
    scheduler = schedulers.CosineAnnealingLR(optimizer, 220, eta_min=floor)
    guards = watch(model, optimizer, policy="observe", scheduler=scheduler)
    for _ in range(200):
        stepped(model, optimizer)
        scheduler.step()
    assert guards.violations == []
    assert len(quiet) > 130


@pytest.mark.parametrize(("at", "rates", "slug"), [
    (141, (5e-3, 5e-3), "lr-groups"), (141, (2e-2, 2e-3), "lr-decay"), (141, (-1e-3, 1e-4), "lr-range"),
])  # fmt: skip
def test_groups_of_several_rates_that_do_something_else_are_seen_in_that_very_step(
    at: int, rates: tuple[float, float], slug: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = groups_of(model, (1e-2, 1e-3))
    guards = watch(model, optimizer, policy="observe")
    for step in range(150):
        for group, first, other in zip(optimizer.param_groups, (1e-2, 1e-3), rates, strict=True):
            group["lr"] = other if step >= at else first * (1 - step / 200)
        stepped(model, optimizer)
    assert (slug, at) in [(v.slug, v.step) for v in guards.violations]


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
