"""Legitimate loops whose learning rate, freezing or choice of optimizer looks odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import H, K, batches, clean, labelled, mlp
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

STEPS = 40


def fit(
    attach: Attach,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    scheduler_of: Callable[[torch.optim.Optimizer], Any],
    *,
    every: int = 1,
    metric: bool = False,
    tell: bool = False,
    **declared: Any,
) -> None:
    """A classifier under a schedule that is stepped every so many steps, with the epoch's loss where it wants one."""
    model = mlp()
    optimizer = optimizer_of(model)
    scheduler = scheduler_of(optimizer)
    with attach(model, optimizer, **({"scheduler": scheduler} if tell else {}), **declared) as guards:
        epoch: list[float] = []
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            epoch.append(loss.item())
            guards.log(loss=loss.item(), lr=optimizer.param_groups[0]["lr"])
            if (step + 1) % every == 0:
                scheduler.step(sum(epoch) / len(epoch)) if metric else scheduler.step()
                epoch = []


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


@clean
def warm_restarts_declared(attach: Attach) -> None:
    """cosine with warm restarts (SGDR), the restarts declared"""
    fit(attach, adam, lambda o: CosineAnnealingWarmRestarts(o, T_0=8), spec={"restarts": [8, 16, 24, 32]})


@clean
def warm_restarts_silent(attach: Attach) -> None:
    """cosine with warm restarts of growing length, nothing declared"""
    fit(attach, adam, lambda o: CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2))


@clean
def one_cycle(attach: Attach) -> None:
    """OneCycleLR: up, then down to almost nothing; the momentum moves too"""
    fit(attach, sgd, lambda o: OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1), tell=True, total_steps=STEPS)


@clean
def plateau(attach: Attach) -> None:
    """ReduceLROnPlateau once an epoch, with a patience of none"""
    fit(attach, sgd, lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5), every=8, metric=True)


@clean
def first_step_at_zero(attach: Attach) -> None:
    """linear warm-up that starts at a rate of exactly zero, then inverse square root"""
    fit(attach, adam, lambda o: LambdaLR(o, lambda step: min(step / 10, (10 / max(step, 1)) ** 0.5)))


@clean
def cyclic(attach: Attach) -> None:
    """CyclicLR: triangles, the rate rises again and again"""
    fit(attach, sgd, lambda o: CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=5))


@clean
def once_an_epoch(attach: Attach) -> None:
    """StepLR that is stepped once an epoch of eight batches"""
    fit(attach, sgd, lambda o: StepLR(o, step_size=2, gamma=0.1), every=8)


@clean
def milestones(attach: Attach) -> None:
    """MultiStepLR per step: long constant stretches with cliffs"""
    fit(attach, sgd, lambda o: MultiStepLR(o, milestones=[15, 30], gamma=0.1))


@clean
def chained_schedules(attach: Attach) -> None:
    """warm-up, then constant, then cosine, chained by SequentialLR"""

    def chain(o: torch.optim.Optimizer) -> SequentialLR:
        parts = [LinearLR(o, 0.1, total_iters=5), ConstantLR(o, 1.0, total_iters=1), CosineAnnealingLR(o, 20)]
        return SequentialLR(o, parts, milestones=[5, 20])

    fit(attach, adam, chain)


@clean
def set_by_hand(attach: Attach) -> None:
    """warm-up, stable, decay written into param_groups by hand, declared as a function"""

    def wsd(step: int) -> float:
        if step < 5:
            return 3e-3 * (step + 1) / 5
        return 3e-3 if step < 30 else 3e-3 * (1 - (step - 30) / 10)

    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    with attach(model, optimizer, spec={"schedule": wsd, "total_steps": STEPS}) as guards:
        for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
            for group in optimizer.param_groups:
                group["lr"] = wsd(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            guards.log(loss=loss)


@clean
def layerwise_rates(attach: Attach) -> None:
    """a rate of its own for each layer, the first at a hundredth of the last, all under one cosine"""
    model = mlp()
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    groups = [{"params": layer.parameters(), "lr": 3e-3 * 0.1 ** (2 - k)} for k, layer in enumerate(layers)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()


@clean
def tiny_rate(attach: Attach) -> None:
    """fine-tuning in float32 at a rate of 1e-6: weights move by a few of their last digits"""
    fit(attach, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-6), lambda o: ConstantLR(o, 1.0, total_iters=1))


@clean
def amsgrad(attach: Attach) -> None:
    """Adam with amsgrad and a large epsilon, biases and norms without decay"""
    model = mlp()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, amsgrad=True, eps=1e-4)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def closure(attach: Attach) -> None:
    """L-BFGS with a closure: many forward and backward passes inside one step"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, H), nn.Tanh(), nn.Linear(H, K))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x, y = labelled(64)
    attach(model, optimizer)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + 1e-3 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.step(evaluate)


CLEAN = (
    warm_restarts_declared,
    warm_restarts_silent,
    one_cycle,
    plateau,
    first_step_at_zero,
    cyclic,
    once_an_epoch,
    milestones,
    chained_schedules,
    set_by_hand,
    layerwise_rates,
    tiny_rate,
    amsgrad,
    closure,
)
