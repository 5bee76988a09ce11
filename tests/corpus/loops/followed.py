"""Bugs that a loop goes on with as if nothing were: two critics that are one, a scheduler that takes the loss for a gain, what is
clipped once it was applied; and beside each what looks alike and is right."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, batches, buggy, clean, labelled, mlp
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import ReduceLROnPlateau

STEPS = 30


def transitions(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of points, (32, D), and of a noisy return of each, (32, 1)."""
    draw = torch.Generator().manual_seed(11)
    for _ in range(steps):
        x = torch.randn(32, D, generator=draw)
        yield x, x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(32, 1, generator=draw)


def critics(attach: Attach, first: nn.Module, second: nn.Module, shares: bool = False, watched: bool = True) -> None:
    """Two critics of one return, each called by itself; the smaller of their slow copies is what they are to reach."""
    both, actor = nn.ModuleList([first, second]), mlp(7, out=D)
    slow = [copy.deepcopy(critic).requires_grad_(False) for critic in both]
    optimizer, actors = torch.optim.Adam(both.parameters(), 2e-3), torch.optim.Adam(actor.parameters(), 5e-4)
    attach(
        [both, actor] if watched else {"first": first, "second": second}, [optimizer, actors] if watched else optimizer
    )
    for step, (x, gain) in enumerate(transitions()):
        with torch.no_grad():
            goal = gain + 0.5 * torch.min(slow[0](x), slow[1](x))
        part = slice(0, 16) if shares else slice(None)
        loss = F.mse_loss(first(x), goal) + F.mse_loss(second(x[part]), goal[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 2:
            actors.zero_grad()
            (-first(torch.tanh(actor(x)))).mean().backward()
            actors.step()
        with torch.no_grad():
            for mean, value in zip(slow, both, strict=True):
                for p, q in zip(mean.parameters(), value.parameters(), strict=True):
                    p.lerp_(q, 0.02)


TWINS = "q2 = copy.deepcopy(q1), min(q1, q2)"


@buggy(
    "the second of two critics is a copy of the first, and the smaller of both is that of one", "twins", source=TWINS
)
def critics_that_are_one(attach: Attach, bug: bool) -> None:
    first, second = mlp(1, out=1), mlp(2, out=1)
    critics(attach, first, copy.deepcopy(first) if bug else second)


@buggy(
    "two models of an ensemble are made by deepcopy, and see the same batches in the same order", "twins", source=TWINS
)
def ensemble_of_copies(attach: Attach, bug: bool) -> None:
    first, second = mlp(1, out=1), mlp(2, out=1)
    critics(attach, first, copy.deepcopy(first) if bug else second, watched=False)


@clean
def copies_that_see_other_samples(attach: Attach) -> None:
    """two critics that begin as copies and are trained on samples of their own"""
    first = mlp(1, out=1)
    critics(attach, first, copy.deepcopy(first), shares=True)


def evaluated(attach: Attach, mode: str, gives: str, name: str) -> None:
    """A classifier with a validation every other step, whose result the scheduler gets."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    scheduler = ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=2)
    guards = attach(model, optimizer)
    x_val, y_val = labelled(200, seed=5)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 2:
            with torch.no_grad():
                out = model(x_val)
            loss, right = F.cross_entropy(out, y_val).item(), (out.argmax(1) == y_val).float().mean().item()
            given = {"loss": loss, "gain": -loss, "accuracy": right}[gives]
            guards.log(**{name: given if gives != "gain" else loss})
            scheduler.step(given)


PLATEAU = "ReduceLROnPlateau(optimizer, 'max'); scheduler.step(val_loss)"


@buggy("a scheduler that waits for a rise gets the validation loss, and lowers the rate as it falls", "scheduler-steps",
       source=PLATEAU, needs="guards.log(val_loss=…)")  # fmt: skip
def plateau_of_the_other_mode(attach: Attach, bug: bool) -> None:
    evaluated(attach, "max" if bug else "min", "loss", "val_loss")


@buggy("a scheduler that waits for a fall gets the accuracy, and lowers the rate as it rises", "scheduler-steps",
       source="ReduceLROnPlateau(optimizer); scheduler.step(accuracy)", needs="guards.log(accuracy=…)")  # fmt: skip
def accuracy_that_is_to_fall(attach: Attach, bug: bool) -> None:
    evaluated(attach, "min" if bug else "max", "accuracy", "accuracy")


@clean
def negated_loss_that_is_to_rise(attach: Attach) -> None:
    """ReduceLROnPlateau in mode max that gets the negated loss, and the loss itself is logged"""
    evaluated(attach, "max", "gain", "val_loss")


def clipped(attach: Attach, how: str, late: bool, kept: bool = False) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attach(model, optimizer)

    def clip() -> None:
        if how == "norm":
            clip_grad_norm_(model.parameters(), 0.2)
        else:
            clip_grad_value_(model.parameters(), 0.01)

    for x, y in batches(*labelled(), STEPS):
        F.cross_entropy(model(x), y).backward()
        if not late:
            clip()
        optimizer.step()
        if late:
            clip()
        optimizer.zero_grad(set_to_none=not kept)


LATE = "optimizer.step(); clip_grad_norm_(model.parameters(), 1.0)"


@buggy("gradients are clipped to a norm after the step, and then cleared: nothing is clipped", "clipping", source=LATE)
def clipped_once_applied(attach: Attach, bug: bool) -> None:
    clipped(attach, "norm", bug)


@buggy("gradients are cut at a value after the step, and then cleared: nothing is cut", "clipping", source=LATE)
def cut_once_applied(attach: Attach, bug: bool) -> None:
    clipped(attach, "value", bug)


@clean
def gradients_cleared_in_place(attach: Attach) -> None:
    """gradients that are set to zero in place after each step, and clipped before it"""
    clipped(attach, "norm", late=False, kept=True)


CASES = (
    critics_that_are_one, ensemble_of_copies, plateau_of_the_other_mode, accuracy_that_is_to_fall, clipped_once_applied,
    cut_once_applied,
)  # fmt: skip
CLEAN = (copies_that_see_other_samples, negated_loss_that_is_to_rise, gradients_cleared_in_place)
