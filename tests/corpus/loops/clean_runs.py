"""Legitimate loops whose order of events looks odd: stopped early, evaluated on training data, resumed, fine-tuned."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, batches, clean, labelled, mlp
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

STEPS = 40


@clean
def early_stopping(attach: Attach) -> None:
    """training ends long before its total of steps because the validation loss has stopped falling; total declared"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    x, y = labelled()
    best, patience = math.inf, 0
    state: dict[str, Any] = {}
    suppress = [{"rule": "step-budget", "reason": "early stopping"}]
    with attach(model, optimizer, spec={"total_steps": 60, "suppress": suppress}) as guards:
        for step, (a, b) in enumerate(batches(x[:192], y[:192], 60)):
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
            if step % 4 == 3:
                model.eval()
                with torch.no_grad():
                    loss = F.cross_entropy(model(x[192:]), y[192:]).item()
                model.train()
                guards.log(val_loss=loss)
                if loss < best:
                    best, patience = loss, 0
                    state = {"model": copy.deepcopy(model.state_dict()), "step": step + 1, "val_loss": loss}
                    guards.checkpoint(state, loss=loss)
                elif (patience := patience + 1) == 3:
                    break
        model.load_state_dict(state["model"])


@clean
def evaluated_on_training_data(attach: Attach) -> None:
    """the loss is estimated on training and validation data in eval mode every ten steps, dropout in the model"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Dropout(0.5), nn.Linear(H, K))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = labelled()
    with attach(model, optimizer) as guards:
        for step, (a, b) in enumerate(batches(x[:192], y[:192], STEPS)):
            if step % 10 == 0:
                model.eval()
                with torch.no_grad():
                    train, held_out = (F.cross_entropy(model(x[p]), y[p]).item() for p in (slice(192), slice(192, 256)))
                model.train()
                guards.log(train_loss=train, val_loss=held_out)
            loss = F.cross_entropy(model(a), b)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@clean
def dropout_in_evaluation(attach: Attach) -> None:
    """Monte Carlo dropout: validation runs on purpose in train mode and is averaged over samples"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Dropout(0.3), nn.Linear(H, K))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = labelled()
    with attach(model, optimizer, spec={"suppress": [{"rule": "mode", "reason": "Monte Carlo dropout"}]}) as guards:
        for step, (a, b) in enumerate(batches(x[:192], y[:192], STEPS)):
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
            if step % 10 == 9:
                with torch.no_grad():
                    votes = torch.stack([model(x[192:]).softmax(-1) for _ in range(8)]).mean(0)
                guards.log(val_loss=F.nll_loss(votes.log(), y[192:]).item())


@clean
def resumed(attach: Attach) -> None:
    """a run is saved with all that it needs and goes on in the same process with new objects: watched twice"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    data = list(batches(*labelled(), STEPS))
    with attach(model, optimizer, scheduler=scheduler) as guards:
        for x, y in data[:20]:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            guards.log(loss=loss.item())
        state = copy.deepcopy({
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(), "step": 20, "loss": loss.item(),
        })  # fmt: skip
        guards.checkpoint(state, loss=state["loss"])
    model = mlp(seed=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    with attach(model, optimizer, scheduler=scheduler) as guards:
        guards.checkpoint(state, loss=state["loss"])
        for x, y in data[20:]:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            guards.log(loss=loss.item())


@clean
def from_pretrained(attach: Attach) -> None:
    """weights are loaded with strict=False on purpose (a new head); the first loss is far below ln 4 afterwards"""
    source = mlp()
    warm = torch.optim.AdamW(source.parameters(), lr=1e-2)
    for x, y in batches(*labelled(), 30):
        warm.zero_grad()
        F.cross_entropy(source(x), y).backward()
        warm.step()
    model = mlp(seed=3)
    body = {name: value for name, value in source.state_dict().items() if not name.startswith("4.")}
    model.load_state_dict(body, strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attach(model, optimizer, spec={"pretrained": True, "classes": K})
    for x, y in batches(*labelled(), STEPS, seed=2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def distilled(attach: Attach) -> None:
    """a frozen teacher in eval mode beside the student in train mode; only the student is watched"""
    teacher, student = mlp(seed=1).eval().requires_grad_(False), mlp()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    attach(student, optimizer)
    for x, y in batches(*labelled(), STEPS):
        logits: Tensor = student(x)
        with torch.no_grad():
            taught = (teacher(x) / 2).softmax(-1)
        loss = F.kl_div((logits / 2).log_softmax(-1), taught, reduction="batchmean") * 4 + F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


CLEAN = (
    early_stopping,
    evaluated_on_training_data,
    dropout_in_evaluation,
    resumed,
    from_pretrained,
    distilled,
)
