"""RUN-42 within a run, and what else is lost on the way: each loop of corpus/loops/keeping with its bug and without."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.loops import clean_keeping, keeping
from corpus.loops.case import Case, Clean
from corpus.loops.materials import batches, labelled, mlp
from torch import nn

from karat.invariants.runtime import watch

# name -> rule, severity, step, words
SAID = {
    "optimizer-made-in-the-epoch-loop": ("resume", "WARN", 10, "Adam was made anew after step 9"),
    "rolled-back-without-the-moments": ("resume", "WARN", 25, "the weights of step 15 were loaded after 25 steps"),
    "moments-emptied": ("resume", "WARN", 20, "the state of AdamW is gone before step 20"),
    "resumed-without-moments": ("resume", "WARN", 0, "LambdaLR stands at 25 before the first step"),
    "resumed-without-the-schedule": (
        "resume",
        "WARN",
        0,
        "AdamW goes on after 25 steps, and LambdaLR stands at its beginning",
    ),
    "epochs-stepped-as-batches": ("scheduler-steps", "WARN", 24, "stepped for each batch"),
    "milestones-passed-at-once": ("scheduler-steps", "WARN", 20, "0.01 of its peak after 5 updates"),
    "batches-stepped-as-epochs": ("scheduler-steps", "WARN", 40, "CosineAnnealingLR is 40 steps long"),
    "head-keeps-its-rate": ("lr-groups", "WARN", 10, "the rate of group 1 stays at 0.01"),
    "discriminator-keeps-the-generators-gradient": (
        "gradient-fresh",
        "WARN",
        2,
        "1.2.bias got before the step of another",
    ),
    "generator-learns-for-the-discriminator": ("gradient-fresh", "WARN", 2, "0.2.bias got before the step of another"),
    "clipped-in-part-undeclared": ("clipping", "WARN", 2, "only 4 is clipped"),
    "clipped-while-scaled-undeclared": ("clipping", "WARN", 2, "clipped to 1 before they were unscaled"),
    "average-misses-the-new-layer": ("ema", "WARN", 21, "further (2 parameters) came to the model after step 19"),
    "statistics-reset": ("buffers", "WARN", 20, "the running statistics of 1 were reset after 20 steps"),
    "one-block-stays-in-evaluation": ("mode", "WARN", 20, "4 stays in eval mode after the evaluation"),
    "seeded-in-the-loop": ("repeats", "WARN", 2, "seeded again in every step"),
    "loss-of-a-batch-recorded": ("checkpoint", "WARN", 9, "is the training loss of the last batch"),
}


def ran(case: Case, bug: bool) -> list[Any]:
    made: list[Any] = []

    def attach(model: Any, optimizer: Any, **declared: Any) -> Any:
        made.append(watch(model, optimizer, policy="observe", **declared))
        return made[-1]

    case.run(attach, bug)
    return [v for guards in made for v in guards.violations]


@pytest.mark.parametrize("case", keeping.CASES, ids=lambda case: case.name)
def test_each_is_named_at_its_step_and_its_twin_is_not(case: Case) -> None:
    slug, severity, step, words = SAID[case.name]
    found = [(v.severity, v.step) for v in ran(case, True) if v.slug == slug and words in v.observed]
    assert found == [(severity, step)]
    assert ran(case, False) == []


@pytest.mark.parametrize("loop", clean_keeping.CLEAN, ids=lambda loop: loop.name)
def test_what_is_meant_is_not_said(loop: Clean) -> None:
    made: list[Any] = []

    def attach(model: Any, optimizer: Any, **declared: Any) -> Any:
        made.append(watch(model, optimizer, policy="observe", **declared))
        return made[-1]

    loop.run(attach)
    assert [v.slug for guards in made for v in guards.violations] == []


def train(steps: int, optimizer_of: Any, between: Any = lambda step, model, optimizer: None) -> Any:
    model = mlp()
    optimizer = optimizer_of(model.parameters())
    guards = watch(model, optimizer, policy="observe")
    with guards:
        for step, (x, y) in enumerate(batches(*labelled(), steps)):
            between(step, model, optimizer)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return guards


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop])
def test_moments_that_are_gone_between_two_looks_are_found_by_their_count(kind: Any) -> None:
    def between(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 100:
            optimizer.load_state_dict(kind(model.parameters(), lr=1e-3).state_dict())

    guards = train(130, lambda p: kind(p, lr=1e-3), between)
    assert [(v.slug, v.severity, v.step) for v in guards.violations] == [("resume", "WARN", 100)]


def test_momentum_that_is_gone_is_found_where_no_step_is_counted() -> None:
    sgd = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    guards = train(40, sgd, lambda step, model, optimizer: optimizer.state.clear() if step == 16 else None)
    assert [(v.slug, v.severity, v.step) for v in guards.violations] == [("resume", "WARN", 16)]
    plain = train(40, lambda p: torch.optim.SGD(p, lr=0.05), lambda s, m, o: o.state.clear() if s == 16 else None)
    assert plain.violations == []


def test_a_declared_first_step_asks_for_moments() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, policy="observe", first_step=100) as guards:
        for x, y in batches(*labelled(), 10):
            keeping.one_step(model, optimizer, x, y)
    assert [(v.slug, v.severity, v.step) for v in guards.violations] == [("resume", "WARN", 100)]


@pytest.mark.parametrize(("begins", "expected"), [(0, 0), (3, 0), (25, 1)])
def test_logged_steps_tell_that_a_run_goes_on(begins: int, expected: int) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, policy="observe") as guards:
        for step, (x, y) in enumerate(batches(*labelled(), 10), begins):
            guards.log(loss=keeping.one_step(model, optimizer, x, y), step=step)
    assert [v.slug for v in guards.violations] == ["resume"] * expected


def test_saving_loading_and_copies_are_as_without_guards() -> None:
    def run(watched: bool) -> list[torch.Tensor]:
        model = mlp()
        model.insert(2, nn.Dropout(0.2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        guards = watch(model, optimizer, policy="observe") if watched else None
        torch.manual_seed(3)
        for step, (x, y) in enumerate(batches(*labelled(), 30)):
            if step == 10:
                kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            if step == 20:
                twin = copy.deepcopy(model)
                twin.load_state_dict(kept[0])
                model.load_state_dict(twin.state_dict())
                optimizer.load_state_dict(kept[1])
            keeping.one_step(model, optimizer, x, y)
        if guards is not None:
            guards.finish()
            assert not model._state_dict_pre_hooks
            assert not optimizer._optimizer_load_state_dict_post_hooks
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_the_hooks_keep_nothing_of_the_guards_alive() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guards = watch(model, optimizer, policy="observe")
    keeping.one_step(model, optimizer, *next(batches(*labelled(), 1)))
    guards.finish()
    gone = weakref.ref(model)
    del model, optimizer, guards
    gc.collect()
    assert gone() is None
