"""Bugs in which the right things are in the wrong place: groups that decay, weights that an evaluation put in, the loss that
a checkpoint records, a factor that is missing from each of several losses, a network that is its own target."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, Language, batches, buggy, labelled, mlp, next_token, text, windows
from torch import Tensor, nn

STEPS, PARTS = 30, 4


def regressed(count: int = 256) -> tuple[Tensor, Tensor]:
    """Points, (count, D), and a smooth number of each, (count, 1)."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, D, generator=draw)
    return x, torch.sin(x[:, :1] + x[:, 1:2]) + 0.1 * torch.randn(count, 1, generator=draw)


def in_parts(attach: Attach, loss: Callable[[Tensor, Tensor], Tensor], log: str, divided: bool, declared: bool) -> None:
    """A network that is trained on four batches at a time."""
    model = mlp(0, out=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    guards = attach(model, optimizer, **({"spec": {"accumulation": PARTS}} if declared else {}))
    for step, (x, y) in enumerate(batches(*regressed(), STEPS * PARTS, 16)):
        value = loss(model(x), y) / PARTS if divided else loss(model(x), y)
        if log:
            guards.log(loss=value if log == "tensor" else value.item())
        value.backward()
        if (step + 1) % PARTS == 0:
            optimizer.step()
            optimizer.zero_grad()


UNDIVIDED, DECLARED = "loss = loss / accumulation_steps", "Spec(accumulation=4), the loss of each batch"


@buggy(
    "four mean square errors are added up, and not divided by four", "accumulation", source=UNDIVIDED, needs=DECLARED
)
def square_errors_undivided(attach: Attach, bug: bool) -> None:
    in_parts(attach, F.mse_loss, "number", not bug, True)


@buggy("four losses of another kind are added up undivided", "accumulation", source=UNDIVIDED, needs=DECLARED)
def smooth_losses_undivided(attach: Attach, bug: bool) -> None:
    in_parts(attach, F.smooth_l1_loss, "tensor", not bug, True)


@buggy(
    "four cross-entropies are added up undivided, and nobody declared it", "accumulation", effect=0, source=UNDIVIDED
)
def cross_entropies_undivided(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS * PARTS, 16)):
        (F.cross_entropy(model(x), y) / (1 if bug else PARTS)).backward()
        if (step + 1) % PARTS == 0:
            optimizer.step()
            optimizer.zero_grad()


@buggy("what decays and what does not are exchanged: biases and norms decay", "weight-decay")
def decay_of_the_others(attach: Attach, bug: bool) -> None:
    model = Language(0)
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    decays, spared = (plain, matrices) if bug else (matrices, plain)
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    attach(model, optimizer)
    for x, y in windows(text(), STEPS):
        optimizer.zero_grad()
        next_token(model(x), y).backward()
        optimizer.step()


def averaged(attach: Attach, every: int, steps: int, put_back: bool) -> None:
    """A network of which an average is loaded to be evaluated."""
    model = mlp(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    mean = copy.deepcopy(model)
    attach(model, optimizer)
    held_out, classes = labelled(64, seed=5)
    for step, (x, y) in enumerate(batches(*labelled(), steps)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, p in zip(mean.parameters(), model.parameters(), strict=True):
                slow.lerp_(p, 0.05)
        if step % every == every - 1:
            trained = copy.deepcopy(model.state_dict())
            model.load_state_dict(mean.state_dict())
            model.eval()
            with torch.no_grad():
                F.cross_entropy(model(held_out), classes)
            model.train()
            if put_back:
                model.load_state_dict(trained)


@buggy("the average that was loaded for an evaluation is not taken out again", "parameter-moves", "ema", effect=12,
       source="ema.store(); ema.copy_to(); …; ema.restore()")  # fmt: skip
def average_stays(attach: Attach, bug: bool) -> None:
    averaged(attach, 12, STEPS, not bug)


@buggy("the average that was loaded for a late evaluation is not taken out again", "parameter-moves", "ema", effect=75)
def average_stays_later(attach: Attach, bug: bool) -> None:
    averaged(attach, 75, 82, not bug)


@buggy("a checkpoint records the loss of the last batch, which nobody logs, and not that of the evaluation", "checkpoint",
       effect=4, needs="val_loss, checkpoint")  # fmt: skip
def unlogged_loss_recorded(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    guards = attach(model, optimizer)
    held_out, classes = labelled(64, seed=5)
    best = math.inf
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():
                value = F.cross_entropy(model(held_out), classes).item()
            guards.log(val_loss=value)
            if value < best:
                best = value
                state = {"model": copy.deepcopy(model.state_dict()), "step": step}
                guards.checkpoint(state, loss=loss.item() if bug else value)


class Siamese(nn.Module):
    """A projection, and a prediction of that of the other view."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(D, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return z, self.predictor(z)


@buggy("two views predict each other, and the target is not detached: the directions narrow and stay so", "collapse",
       source="p.detach() of SimSiam's target")  # fmt: skip
def siamese_without_stop(attach: Attach, bug: bool) -> None:
    model = Siamese()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    attach(model, optimizer)
    noise = torch.Generator().manual_seed(7)
    for x, _ in batches(*labelled(512, 8), 70, 64):
        (z, p), (z2, p2) = (model(x + 0.4 * torch.randn(x.shape, generator=noise)) for _ in range(2))
        if not bug:
            z, z2 = z.detach(), z2.detach()
        optimizer.zero_grad()
        (-(F.cosine_similarity(p, z2).mean() + F.cosine_similarity(p2, z).mean()) / 2).backward()
        optimizer.step()


CASES = (
    square_errors_undivided, smooth_losses_undivided, cross_entropies_undivided, decay_of_the_others, average_stays,
    average_stays_later, unlogged_loss_recorded, siamese_without_stop,
)  # fmt: skip
