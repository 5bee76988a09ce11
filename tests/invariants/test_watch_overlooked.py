"""Shapes of losses, masks, batches of copies, and what is carried on from step to step: each named, its twin left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from corpus.loops import carried, latents, overlooked
from corpus.watched import watched

from karat.invariants.runtime.watching.checks.chain_rule import unrelated
from karat.invariants.runtime.watching.checks.doubled import copies
from karat.invariants.runtime.watching.checks.piled import piled
from karat.invariants.runtime.watching.checks.reinitialised import other

CASES = {case.name: case for case in (*overlooked.CASES, *carried.CASES, *latents.CASES)}


@pytest.mark.parametrize("name", CASES)
def test_each_is_named_from_its_step_on_and_its_twin_is_not(name: str) -> None:
    case = CASES[name]
    found = [v for v in watched(lambda attach: case.run(attach, True)) if v.slug in case.rules]
    assert [v.severity for v in found] == ["WARN"]
    assert found[0].step >= (case.first_effect or 0)
    assert watched(lambda attach: case.run(attach, False)) == []


@pytest.mark.parametrize("loop", (*overlooked.CLEAN, *carried.CLEAN, *latents.CLEAN), ids=lambda loop: loop.name)
def test_what_looks_alike_sets_off_nothing(loop: Any) -> None:
    assert watched(loop.run) == []


def test_rows_that_are_copies() -> None:
    rows = torch.randn(8, 3)
    assert copies(rows) == ""
    assert copies(torch.cat([rows, rows])) == "halves"
    assert copies(rows[:1].expand(8, 3)) == "all"
    several = torch.cat([rows[:1].expand(4, 3), rows[:4]])
    assert copies(torch.cat([several, several])) == ""  # rows come twice anyway


def test_sizes_that_go_together() -> None:
    torch.manual_seed(0)
    given, slope = torch.randn(4096), torch.rand(4096) + 0.1
    assert unrelated(given, slope) is True
    assert unrelated(given, given * slope) is False
    assert unrelated(given, given.clamp(-0.1, 0.1) + 0 * slope) is False
    assert unrelated(given[:64], slope[:64]) is None
    assert unrelated(torch.ones(4096), slope) is None


def test_numbers_with_something_added_and_others() -> None:
    torch.manual_seed(0)
    old = torch.randn(32, 16).double()
    assert piled(old, old + 0.5 * torch.randn(32, 16))
    assert not piled(old, torch.randn(32, 16).double())
    assert not piled(old, 2 * old)
    assert not piled(old, old)


def test_weights_drawn_anew_and_those_that_moved() -> None:
    torch.manual_seed(0)
    old, anew = torch.randn(2, 512)
    then = torch.stack([old, old, old, torch.zeros(512), old])
    now = torch.stack([anew, old + 0.5 * anew, 100 * anew, anew, torch.full((512,), torch.nan)])
    assert other(then, now) == [True, False, False, False, False]
