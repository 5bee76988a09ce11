"""Loops that run twice, unwatched and watched, and must be the same in every respect; the tests are in test_watch_hostile*.py.

Compared are what was returned and raised, weights, gradients, buffers, modes, attributes, hooks, generators, and what was
printed. No rule may FAIL, for every such loop is correct.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.invariants.runtime import Watch, watch

Loop = Callable[[Callable[..., Any]], Any]


def batch(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=source), torch.randint(0, 3, (8,), generator=source)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.relu(self.a(x)))


def state(value: Any) -> Any:
    """Everything of a result that can be compared."""
    if isinstance(value, nn.Module):
        modules = [
            (name, m.training, sorted(m.__dict__), len(m._forward_hooks), len(m._load_state_dict_post_hooks))
            for name, m in value.named_modules()
        ]
        return [modules, *map(state, (*value.state_dict().values(), *(p.grad for p in value.parameters())))]
    if isinstance(value, Tensor):
        numbers = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        return (str(numbers.dtype), numbers.cpu().float().numpy().tobytes() if not numbers.is_meta else "meta")
    if isinstance(value, dict):
        return {str(k): state(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [state(v) for v in value]
    return repr(value)


def lived(loop: Loop, *, watched: bool) -> tuple[Any, list[Watch]]:
    """What became of a run: its result or its exception, what it printed, the generators after it; and its guards."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    guards: list[Watch] = []

    def watching(model: Any, optimizer: Any, **options: Any) -> Watch | None:
        if not watched:
            return None
        guards.append(watch(model, optimizer, **{"say": lambda text: None, **options}))
        return guards[-1]

    printed = io.StringIO()
    result: Any = None
    raised = ""
    with contextlib.redirect_stdout(printed):
        try:
            result = loop(watching)
        except BaseException as error:
            raised = repr(error)
    generators = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # type: ignore[index]
    for found in guards:
        found.finish()
    return (raised, state(result), printed.getvalue(), generators), guards


def same(loop: Loop) -> Watch:
    """The guards of the loop, which is one watched and unwatched and ends without a FAIL."""
    alone, _ = lived(loop, watched=False)
    beside, guards = lived(loop, watched=True)
    assert not alone[0]
    for one, other in zip(alone, beside, strict=True):
        assert one == other
    assert not [v for found in guards for v in found.violations if v.severity == "FAIL"]
    return guards[0]


def trained(
    watching: Callable[..., Any],
    model: nn.Module,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
    steps: int = 4,
) -> list[Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watching(model, optimizer)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(call(model, x) if call else model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return [model, losses]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
    return model
