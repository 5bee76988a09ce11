"""Bugs that leave behind other numbers than those that were trained, or other data: weights that come back rounded, weights
that were not loaded, batches that are normalised in place."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, K, batches, buggy, labelled, mlp
from torch import Tensor, nn


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@buggy("the model is turned to bfloat16 for an evaluation and back: each weight was rounded", "precision", effect=40,
       source="model.to(torch.bfloat16); evaluate(model); model.float()")  # fmt: skip
def evaluated_in_bfloat16(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    held_out, _ = labelled(64, seed=5)
    for step, (x, y) in enumerate(batches(*labelled(), 50)):
        if step == 40:
            other = model if bug else copy.deepcopy(model)
            other.eval().to(torch.bfloat16)
            with torch.no_grad():
                other(held_out.bfloat16())
            model.float().train()
        stepped(model, optimizer, x, y)


@buggy("a checkpoint is saved in float16, and the model that goes on was rounded by it", "precision", effect=21,
       source="torch.save(model.half().state_dict(), path); model.float()")  # fmt: skip
def saved_in_half(attach: Attach, bug: bool) -> None:
    model = mlp(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), 40)):
        if step == 21:
            kept = model.half().state_dict() if bug else {n: t.half() for n, t in model.state_dict().items()}
            assert next(iter(kept.values())).dtype is torch.float16
            model.float()
        stepped(model, optimizer, x, y)


def resumed(attach: Attach, model: nn.Module, fresh: nn.Module, named: bool) -> None:
    """Trains a model, and goes on with another one that is given its state."""
    data = batches(*labelled(), 100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        stepped(model, optimizer, *next(data))
    state = {("" if named else "module.") + n: t for n, t in model.state_dict().items()}
    saved = copy.deepcopy((state, optimizer.state_dict()))
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=2e-3)
    fresh.load_state_dict(saved[0], strict=False)
    optimizer.load_state_dict(saved[1])
    attach(fresh, optimizer)
    for x, y in data:
        stepped(fresh, optimizer, x, y)


@buggy("no name of the checkpoint is the model's, and strict=False says nothing: only the optimizer is loaded", "resume",
       source="load_state_dict(state, strict=False) of a DataParallel checkpoint")  # fmt: skip
def resumed_from_other_names(attach: Attach, bug: bool) -> None:
    resumed(attach, mlp(0, 64), mlp(1, 64), not bug)


@buggy("a network with norms goes on from its initialisation with the optimizer of the run before", "resume",
       source="load_state_dict(state, strict=False) of a DataParallel checkpoint")  # fmt: skip
def norms_from_other_names(attach: Attach, bug: bool) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(D, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, K))

    resumed(attach, made(0), made(1), not bug)


class Standardised(nn.Module):
    """Takes off a mean and divides by a deviation, in place or not."""

    def __init__(self, x: Tensor, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("deviation", x.std(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x -= self.mean  # type: ignore[operator]
            x /= self.deviation  # type: ignore[operator]
            return x
        return (x - self.mean) / self.deviation  # type: ignore[no-any-return, operator]


@buggy("the model standardises slices of the data set in place: each epoch does it once more", "inputs", effect=16,
       source="x -= mean in a forward that is given slices")  # fmt: skip
def data_standardised_in_place(attach: Attach, bug: bool) -> None:
    x, y = labelled(512)
    x = 2.5 * x + 4
    model = nn.Sequential(Standardised(x, bug), mlp(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for _ in range(3):
        for start in range(0, 512, 32):
            stepped(model, optimizer, x[start : start + 32], y[start : start + 32])


@buggy("the loop scales the slice that is its batch in place, and the data set with it", "inputs", effect=8,
       source="batch = data[i:j]; batch *= scale")  # fmt: skip
def batch_scaled_in_place(attach: Attach, bug: bool) -> None:
    x, y = labelled(256)
    model = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    order = torch.Generator().manual_seed(4)
    for _ in range(4):
        for start in (32 * torch.randperm(8, generator=order)).tolist():
            batch = x[start : start + 32]
            if bug:
                batch *= 0.9
            else:
                batch = batch * 0.9
            stepped(model, optimizer, batch, y[start : start + 32])


CASES = (
    evaluated_in_bfloat16, saved_in_half, resumed_from_other_names, norms_from_other_names, data_standardised_in_place,
    batch_scaled_in_place,
)  # fmt: skip
