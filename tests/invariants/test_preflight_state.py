"""preflight leaves everything as it was found, bit for bit: on success, when a probe raises, when loss_fn raises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.errors import KaratError
from karat.invariants.inv08_lr_band import Band
from karat.invariants.runtime import Spec, preflight, watch
from karat.invariants.runtime.preflight import modes, run
from karat.invariants.runtime.preflight.keep import Kept

D, V, B = 8, 5, 4


class Moody(nn.Module):
    """Buffers that move, an attribute that is written in forward, a list that grows, a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(D, D),
            nn.BatchNorm1d(D),
            nn.Dropout(0.3),
            nn.Linear(D, V),
        )
        self.frozen = nn.Linear(D, D).requires_grad_(False)
        self.frozen.eval()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.count, self.seen, self.cache = 0, [1], torch.zeros(D)
        self.source = torch.Generator().manual_seed(9)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[operator, has-type]
        self.count += 1
        self.seen.append(self.count)
        self.cache.add_(x.detach().mean(0))
        torch.rand(1, generator=self.source), random.random(), np.random.rand()
        return self.last(self.drop(self.norm(self.first(x) + self.frozen(x)).relu()))  # type: ignore[no-any-return]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor).encode()


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a nested value, tensors with their bits and identity."""
    if isinstance(value, Tensor):
        yield path, (id(value), value.data_ptr(), bits(value), value.requires_grad)
        yield f"{path}.grad", None if not value.is_leaf or value.grad is None else (id(value.grad), bits(value.grad))
    elif isinstance(value, dict):
        yield f"{path}.keys", [id(key) if isinstance(key, Tensor) else key for key in value]
        for key, item in value.items():
            yield from flat(item, f"{path}.{id(key) if isinstance(key, Tensor) else key}")
    elif isinstance(value, (list, tuple, set)):
        yield f"{path}.length", len(value)
        for place, item in enumerate(value):
            yield from flat(item, f"{path}.{place}")
    elif isinstance(value, torch.Generator):
        yield path, bits(value.get_state())
    elif isinstance(value, (int, float, str, bool, type(None))):
        yield path, value
    else:
        yield path, id(value)


def state(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> dict[str, Any]:
    everything = {
        "modules": [module.__dict__ for module in model.modules()],
        "optimizer": optimizer.__dict__,
        "batch": batch,
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "torch": bits(torch.get_rng_state()).hex(),
    }
    return dict(flat(everything))


def setting() -> tuple[Moody, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    """A model in the middle of training: moments, gradients, a scheduler, moved generators."""
    torch.manual_seed(3)
    model = Moody()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    batch = torch.randn(B, D), torch.randint(0, V, (B,))
    for _ in range(2):
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model, optimizer, batch


def test_everything_is_as_it_was_found() -> None:
    model, optimizer, batch = setting()
    before = state(model, optimizer, batch)
    report = preflight(model, batch, loss_of, optimizer, spec=Spec(seconds=60))
    after = state(model, optimizer, batch)
    assert [key for key in {**before, **after} if before.get(key) != after.get(key)] == []
    assert len(report.held) >= 8


def test_the_comparison_above_sees_a_step_a_forward_and_a_random_number() -> None:
    for touch in ("step", "forward", "random", "mode", "grad"):
        model, optimizer, batch = setting()
        before = state(model, optimizer, batch)
        if touch == "step":
            optimizer.step()
        elif touch == "forward":
            model(batch[0])
        elif touch == "random":
            random.random()
        elif touch == "mode":
            model.frozen.train()
        else:
            model.zero_grad()
        assert state(model, optimizer, batch) != before, touch


@pytest.mark.parametrize("call", [1, 2, 5, 9])
def test_everything_is_as_it_was_found_when_loss_fn_raises_in_the_middle(call: int) -> None:
    model, optimizer, batch = setting()
    before, calls = state(model, optimizer, batch), []

    def raising(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        loss = loss_of(model, batch)
        if len(calls) >= call:
            batch[0].zero_()
            raise ValueError("a wrong turn")
        return loss

    if call == 1:
        with pytest.raises(KaratError, match="loss_fn raised ValueError: a wrong turn"):
            preflight(model, batch, raising, optimizer)
    else:
        report = preflight(model, batch, raising, optimizer, spec=Spec(seconds=60))
        assert any("a wrong turn" in why for why in report.not_run.values())
    assert state(model, optimizer, batch) == before and len(calls) >= call


def test_everything_is_as_it_was_found_when_a_probe_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Any) -> Any:
        subject.jitter()
        subject.gradients()
        subject.step()
        model.eval()
        raise ZeroDivisionError

    model, optimizer, batch = setting()
    before = state(model, optimizer, batch)
    monkeypatch.setattr(run, "PROBES", (modes.EVAL.probe(broken),))
    with pytest.raises(ZeroDivisionError):
        preflight(model, batch, loss_of, optimizer)
    assert state(model, optimizer, batch) == before


def test_a_fresh_optimizer_has_no_state_afterwards_and_a_model_in_eval_stays_there() -> None:
    model = Moody().eval()
    optimizer = torch.optim.Adam(model.last.parameters())
    preflight(model, (torch.randn(B, D), torch.randint(0, V, (B,))), loss_of, optimizer)
    assert not optimizer.state and not model.training and not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_nan_and_negative_zero_come_back_with_their_bits() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0] = torch.tensor([float("nan"), -0.0])
    then = bits(model.weight)
    kept = Kept(model, [], None)
    with torch.no_grad():
        model.weight.fill_(0.0)
    model.weight.requires_grad_(False)
    kept.put_back()
    assert bits(model.weight) == then and model.weight.requires_grad


def test_guards_that_watch_the_optimizer_do_not_see_the_probes() -> None:
    model, optimizer, batch = setting()
    guards = watch(model, optimizer, policy="observe", lr_band=Band())
    preflight(model, batch, loss_of, optimizer)
    assert guards.step == 0 and not guards.violations
    optimizer.step()
    assert guards.step == 1


def test_two_runs_of_preflight_find_the_same() -> None:
    model, optimizer, batch = setting()
    first, second = (preflight(model, batch, loss_of, optimizer, spec=Spec(seconds=60)) for _ in range(2))
    assert (first.findings, first.held, first.not_run) == (second.findings, second.held, second.not_run)
