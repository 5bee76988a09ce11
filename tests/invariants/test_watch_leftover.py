"""What is left that a loop goes on from, and sequences that are not seen as meant: each is found and named, its twin is not."""

from __future__ import annotations

import pytest
import torch
from corpus.loops import attended, leftover
from corpus.loops.case import Case, Clean
from corpus.watched import watched
from torch import nn

from karat.invariants.runtime import watch

WORDS = {
    "tail-that-joins-the-next-group": (6, "join the first group of the next"),
    "gradient-of-a-look-is-left": (7, "two gradients of one forward"),
    "rollback-to-another-model": (15, "another model was built"),
    "scheduler-of-the-first-stage": (4, "no longer steps"),
    "plateau-that-waits-for-a-rise": (16, "waits for a loss to rise"),
    "thawed-by-an-attribute": (12, "Call requires_grad_(True)"),
    "nan-kept-by-a-skipped-step": (10, "What is added to NaN is NaN"),
    "average-left-in-the-model": (15, "were not put back"),
    "lines-of-other-lengths": (1, "a mean of means"),
    "advantage-with-its-graph": (0, "Detach the advantage"),
    "heads-that-cut-the-time": (0, "cut in pieces"),
    "mask-of-padding-inverted": (0, "the mask is inverted"),
    "memory-detached-in-mid-run": (12, "goes into mixer detached"),
}
"""Of each case the step that is named, and words of the message."""
CASES = [*leftover.CASES, *attended.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_found_and_its_twin_is_not(case: Case) -> None:
    found = watched(lambda attach: case.run(attach, True))
    step, words = WORDS[case.name]
    own = [v for v in found if v.slug in case.rules]
    assert [(v.severity, v.step) for v in own] == [("WARN", step)], found
    assert words in own[0].observed
    assert not [v for v in found if v.severity == "FAIL"]
    assert watched(lambda attach: case.run(attach, False)) == []


@pytest.mark.parametrize("loop", [*leftover.CLEAN, *attended.CLEAN], ids=lambda loop: loop.name)
def test_what_looks_alike_and_is_right_is_silent(loop: Clean) -> None:
    assert watched(loop.run) == []


@pytest.mark.parametrize("name", ["require_grad", "requires_grads"])
def test_a_name_that_is_nearly_requires_grad_is_told_on_a_parameter(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guards = watch(model, optimizer, policy="observe")
    for step in range(6):
        if step == 3:
            setattr(model[0].weight, name, True)
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    assert [(v.slug, v.step) for v in guards.violations] == [("gradient-reach", 3)]
    assert f"0.weight.{name} = True" in guards.violations[0].observed
    guards.finish()


def test_an_attribute_that_agrees_with_the_parameters_is_not_told() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad = True
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guards = watch(model, optimizer, policy="observe")
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    assert not guards.violations
    guards.finish()
