"""RUN-33, 35, 54: updates and gradients that the number format swallows, and their clean twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.moving import data, net, only, train
from torch import Tensor, nn

from karat.invariants.run import run33_precision, run54_update_ratio
from karat.invariants.runtime import watch

# -- RUN-54 ----------------------------------------------------------------------------------------------------------


def test_a_step_larger_than_the_weights() -> None:
    model = net()
    wild = lambda step: [p.grad.fill_(1.0) for p in model.parameters() if p.grad is not None]  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    groups = optimizer.param_groups

    def doubling(step: int) -> None:
        wild(step)
        groups[0]["lr"] = 10.0**step * 3

    found = train(model, optimizer, 6, before=doubling)
    only(found, "update-ratio", "WARN", 0, "times its own norm")
    assert run54_update_ratio.RULE.severity == "WARN"


# -- RUN-33, RUN-35 --------------------------------------------------------------------------------------------------


def test_updates_below_the_spacing_of_bfloat16() -> None:
    model = net().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    only(train(model, optimizer), "precision", "FAIL", 0, "lost in rounding", "no master weights")
    model = net().bfloat16()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.5), 12) == []


def test_another_optimizer_in_bfloat16_may_round_stochastically() -> None:
    class Stochastic(torch.optim.SGD):
        """A stand-in that moves few elements at a step."""

    Stochastic.__module__ = "elsewhere"
    model = net().bfloat16()
    only(train(model, Stochastic(model.parameters(), lr=1e-5)), "precision", "WARN", 0)


def test_a_rate_that_rises_from_nothing_or_ends_there_is_none_of_it() -> None:
    for rate in (lambda s: 1e-7 * (s + 1), lambda s: max(0.5 * (1 - s / 12), 0.0)):
        model = net().bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

        def scheduled(step: int, optimizer: Any = optimizer, rate: Any = rate) -> None:
            optimizer.param_groups[0]["lr"] = rate(step + 1)

        optimizer.param_groups[0]["lr"] = rate(0)
        assert train(model, optimizer, 12, after=scheduled) == []


def test_the_declared_type() -> None:
    model = net()
    model[2].double()
    declared = watch(model, torch.optim.SGD(model.parameters(), lr=0.1), policy="observe", spec={"dtype": "float32"})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    next(iter(declared._loop.optimizers)).step()
    found = [v for v in declared.violations if v.slug == "precision"]
    assert found[0].step == 0 and "2 trainable parameters are float64, declared is float32" in found[0].message
    declared.finish()


def test_float16_near_its_end_and_epsilon_below_it() -> None:
    model = net().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.no_grad():
        model[2].bias.fill_(30000.0)
    found = train(model, optimizer, 3)
    assert any("30000" in v.message or "3e+04" in v.message for v in found if v.slug == "overflow")
    model = net().half()
    found = train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 1)
    assert [v.message for v in found if v.slug == "overflow" and "eps = 1e-08 of Adam is zero in float16" in v.message]


def test_a_scaled_loss_is_not_underflow() -> None:
    for enabled in (True, False):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, enabled=enabled)
        with watch(model, optimizer, policy="observe") as guards:
            for step in range(4):
                x, y = data(step)
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = F.cross_entropy(model(x), y) / 2**16
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        said = [v for v in guards.violations if v.slug == "overflow"]
        assert bool(said) is not enabled
        assert all(v.severity == "WARN" and v.step == 0 and "not scaled" in v.message for v in said)


class Bypass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


@pytest.mark.parametrize("bypass", [True, False])
def test_a_layer_that_does_not_follow_autocast(bypass: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential((Bypass if bypass else nn.Linear)(8, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = torch.get_rng_state()
    with watch(model, optimizer, policy="observe") as guards:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(data(0)[0]), data(0)[1])
        loss.backward()
        drawn = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), drawn) and not torch.equal(drawn, state)
    found = [v for v in guards.violations if v.slug == "precision"]
    assert [(v.severity, v.step, v.where) for v in found] == ([("WARN", 0, "0")] if bypass else [])


def test_margins_are_those_of_the_rules() -> None:
    assert run33_precision.RULE.holds_for(0.95, 0.95) and not run33_precision.RULE.holds_for(0.96, 0.95)
