"""Schedulers and scalers are found among the living objects, however they came and went, without going through all of them."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from karat.invariants.runtime.watching import attached


def truth() -> set[int]:
    kinds = {kind for root in attached.ROOTS for kind in attached.subclasses(root)}
    return {id(o) for o in gc.get_referrers(*kinds) if type(o) in kinds}


def made(kind: int, optimizer: torch.optim.Optimizer) -> Any:
    if kind == 0:
        return torch.amp.GradScaler("cpu")
    if kind == 1:
        return lr_scheduler.StepLR(optimizer, 5)
    return lr_scheduler.CosineAnnealingLR(optimizer, 5)


@pytest.mark.parametrize("seed", range(2))
def test_what_lives_is_found_after_any_coming_and_going(seed: int) -> None:
    chance = random.Random(seed)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    living: list[Any] = []
    for _ in range(20):
        if living and chance.random() < 0.4:
            living.pop(chance.randrange(len(living)))
        else:
            living.append(made(chance.randrange(3), optimizer))
        if chance.random() < 0.2:
            gc.collect()
        if chance.random() < 0.1:
            attached.look_through()
        found = {id(o) for o in attached.every()}
        assert {id(o) for o in living} <= found <= truth()


def test_all_objects_are_gone_through_only_where_something_is_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    through: list[None] = []
    whole = attached._living
    monkeypatch.setattr(attached, "_living", lambda: through.append(None) or whole())
    attached.look_through()
    through.clear()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert attached.every() is not None and not through  # none was made since
    young = lr_scheduler.StepLR(optimizer, 5)
    assert any(o is young for o in attached.every()) and not through  # among the youngest
    gc.collect()
    assert any(o is young for o in attached.every()) and len(through) == 1  # among the old: once
    assert any(o is young for o in attached.every()) and len(through) == 1
