"""The averaged weights: torch's update against the proved formula, the hull, the swap, the state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from karat.core.errors import CheckpointError
from karat.core.formulas import ema
from karat.invariants.inv06_ema_decay import Averaging
from karat.invariants.runtime.torch_ops import TORCH
from karat.trainer.optim.ema import WeightAverage

LOW, HIGH = Averaging().ends


def made(model: nn.Module, total: int = 20, every: int = 1) -> WeightAverage:
    return WeightAverage(
        model.named_parameters(), lambda step: ema.decay_at(step, total, LOW, HIGH), every=every, first=LOW
    )


def drift(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_update_is_the_proved_formula_to_an_ulp(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    average = torch.randn(20_000, dtype=dtype)
    near = average * (1 + torch.randint(-3, 4, average.shape) * torch.finfo(dtype).eps)
    weight = torch.where(torch.rand(average.shape) < 0.5, near, torch.randn(20_000, dtype=dtype))
    wide = made(nn.Linear(2, 2))
    for decay in (LOW, 0.998, 0.9999, 1.0):
        ours, scratch = average.clone(), (torch.empty_like(average), torch.empty_like(average))
        wide.move(ours, weight, decay, *scratch)
        exact = ema.averaged(average.double(), weight.double(), decay, TORCH)
        assert bool(((ours >= torch.minimum(average, weight)) & (ours <= torch.maximum(average, weight))).all())
        size = torch.maximum(average.abs(), weight.abs()).double()
        assert bool(((ours.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * size).all())
    assert torch.equal(ours, average)  # at decay 1 nothing moves


def test_lerp_alone_is_not_what_keeps_nan_visible() -> None:
    average, weight = torch.tensor([0.0, 1.0]), torch.tensor([math.nan, math.inf])
    made(nn.Linear(2, 2)).move(average, weight, 0.998, torch.empty(2), torch.empty(2))
    assert math.isnan(float(average[0])) and not math.isfinite(float(average[1]))


def test_updates_follow_the_schedule_and_stay_in_the_hull() -> None:
    model = nn.Linear(6, 5)
    average = made(model, total=10, every=3)
    assert average.used is None and average.previous == LOW
    seen = []
    for step in range(10):
        drift(model, step)
        average.update(step)
        seen.append(average.used)
        assert average.outside.tolist() == ([0.0, 0.0] if step % 3 == 0 else [0.0])
    assert seen == [ema.decay_at(step, 10, LOW, HIGH) for step in range(10)]
    assert average.previous == seen[-2]


def test_an_update_that_leaves_the_hull_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(6, 5)
    average = made(model)
    drift(model, 1)
    monkeypatch.setattr(average, "move", lambda a, w, *_: a.copy_(w + 0.25))
    average.update(0)
    assert max(average.outside.tolist()) >= 0.25 - 1e-6


def test_an_update_by_another_decay_is_measured_inside_the_hull_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(6, 5)
    average = made(model)
    drift(model, 1)
    pairs = zip(average.averages.values(), model.parameters(), strict=True)
    apart = max(float((a - w).detach().abs().max()) for a, w in pairs)
    monkeypatch.setattr(average, "move", lambda a, w, *_: a.lerp_(w, 0.5))
    average.update(0)
    assert max(average.outside.tolist()) == pytest.approx((LOW - 0.5) * apart, rel=1e-3)


def test_one_step_of_float32_outside_the_hull_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    average = made(nn.Linear(6, 5))
    monkeypatch.setattr(average, "move", lambda a, w, *_: a.copy_(a.nextafter(torch.tensor(math.inf))))
    average.update(0)
    assert 0 < max(average.outside.tolist()) < 1e-6


def test_in_place_of_weights_gives_them_back_bit_for_bit() -> None:
    model = nn.Linear(6, 5)
    average = made(model)
    drift(model, 1)
    average.update(0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="in the middle"), average.in_place_of_weights():
        assert all(map(torch.equal, model.parameters(), average.averages.values()))
        assert not torch.equal(model.weight, before[0])
        raise RuntimeError("in the middle")
    assert all(map(torch.equal, model.parameters(), before))


def test_the_state_is_taken_up_bit_for_bit_and_only_by_the_same_model() -> None:
    model = nn.Linear(6, 5)
    average = made(model)
    drift(model, 1)
    average.update(0)
    other = made(nn.Linear(6, 5))
    other.restore(average.state())
    assert all(map(torch.equal, other.averages.values(), average.averages.values()))
    assert (other.used, other.previous) == (average.used, average.previous)
    with pytest.raises(CheckpointError, match="another model: weight"):
        made(nn.Linear(5, 5)).restore(average.state())
