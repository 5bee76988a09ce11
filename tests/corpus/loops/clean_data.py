"""Legitimate loops whose data, loss or order of events looks odd: one batch again and again, huge targets, a resumed run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, Language, V, batches, clean, labelled, mlp, next_token, text, windows
from torch import nn

STEPS = 40


@clean
def one_batch_on_purpose(attach: Attach) -> None:
    """one batch is overfitted, as a sanity check: 40 times the same input, and a loss that goes to nothing"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = labelled(16)
    suppress = [{"rule": "repeats", "reason": "overfitting one batch is the point"}]
    with attach(model, optimizer, spec={"suppress": suppress}) as guards:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item(), inputs=x, targets=y)


@clean
def full_batch(attach: Attach) -> None:
    """full-batch gradient descent on a small data set: every step sees the same tensor, nothing declared"""
    torch.manual_seed(0)
    model = nn.Linear(D, K)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = labelled(64)
    attach(model, optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def curriculum(attach: Attach) -> None:
    """easy batches are repeated before hard ones come in: repeats within an epoch, a loss that jumps up"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = labelled()
    hard = torch.argsort((x - x.mean(0)).norm(dim=1))
    with attach(model, optimizer) as guards:
        for stage in range(4):
            pool = hard[: 64 * (stage + 1)]
            for step in range(10):
                rows = pool[(torch.arange(32) + 32 * step) % len(pool)]
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                guards.log(loss=loss.item(), inputs=x[rows], targets=y[rows])


@clean
def contrastive(attach: Attach) -> None:
    """a contrastive loss: each sample's loss depends on the rest of the batch, by design; a learnt temperature"""
    model = nn.ModuleDict({"net": mlp(out=8)})
    model.register_parameter("temperature", nn.Parameter(torch.tensor(2.0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, _ in batches(*labelled(), STEPS):
        a, b = (F.normalize(model["net"](x + 0.1 * torch.randn_like(x)), dim=-1) for _ in range(2))
        logits = model.temperature.exp() * a @ b.T
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.arange(len(x))).backward()
        optimizer.step()


@clean
def smoothed_and_weighted(attach: Attach) -> None:
    """label smoothing and class weights: the loss ends far above zero, and its first value is not ln 4 exactly"""
    model = mlp()
    loss_of = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 1.0, 5.0]), label_smoothing=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"classes": K}) as guards:
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item(), targets=y)


@clean
def rare_class(attach: Attach) -> None:
    """one sample in fifty is positive: most batches have one class only, and almost every output is the same at first"""
    model = mlp(out=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, _ = labelled()
    y = torch.zeros(len(x))
    y[::50] = 1.0
    with attach(model, optimizer) as guards:
        for a, b in batches(x, y, STEPS):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(a).squeeze(1), b, pos_weight=torch.tensor(50.0))
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item(), targets=b)


@clean
def huge_targets(attach: Attach) -> None:
    """regression on prices: the loss starts at about 1e11 and gradients are large"""
    model = mlp(out=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    x, _ = labelled()
    y = 3e5 + 1e5 * x[:, :3].sum(1)
    with attach(model, optimizer) as guards:
        for a, b in batches(x, y, STEPS):
            optimizer.zero_grad()
            loss = F.mse_loss(model(a).squeeze(1), b)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item())


@clean
def summed_loss(attach: Attach) -> None:
    """a variational autoencoder: the loss is a sum over pixels and a divergence, far above ln of anything"""
    torch.manual_seed(0)
    model = nn.ModuleDict({"in": nn.Linear(D, 8), "out": nn.Linear(4, D)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as guards:
        for x, _ in batches(*labelled(), STEPS):
            mean, spread = model["in"](x).chunk(2, -1)
            back = model["out"](mean + torch.randn_like(mean) * (spread / 2).exp())
            losses = {"rebuild": F.mse_loss(back, x, reduction="sum"),
                      "divergence": 0.5 * (mean.square() + spread.exp() - 1 - spread).sum()}  # fmt: skip
            optimizer.zero_grad()
            (losses["rebuild"] + losses["divergence"]).backward()
            optimizer.step()
            guards.log(losses={name: term.item() for name, term in losses.items()})


@clean
def masked_language(attach: Attach) -> None:
    """a masked language model: targets are the inputs themselves, mostly ignored; attention sees both sides"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V + 1, D), nn.Linear(D, H), nn.ReLU(), nn.Linear(H, V))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(5)
    with attach(model, optimizer, spec={"causal": False, "ignore_index": -100}) as guards:
        for x, _ in windows(text(), STEPS):
            hidden = torch.rand(x.shape, generator=draw) < 0.3
            y = x.masked_fill(~hidden, -100)
            x = x.masked_fill(hidden, V)
            loss = next_token(model(x), y, ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.detach(), inputs=x, targets=y)


@clean
def copying_autoencoder(attach: Attach) -> None:
    """an autoencoder over tokens: targets equal inputs, and nothing says that the model is causal"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, 4), nn.Linear(4, V))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer) as guards:
        for x, _ in windows(text(), STEPS):
            loss = next_token(model(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.detach(), inputs=x, targets=x)


@clean
def in_bits(attach: Attach) -> None:
    """the logged loss is in bits per token while backward runs on nats"""
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"causal": True}) as guards:
        for x, y in windows(text(), STEPS):
            loss = next_token(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item() / math.log(2), inputs=x, targets=y)


@clean
def continual(attach: Attach) -> None:
    """the task changes in mid-run: classes come one after the other and the loss jumps at each"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = labelled()
    with attach(model, optimizer) as guards:
        for task in range(2):
            mine = (y // 2) == task
            for a, b in batches(x[mine], y[mine], 20, size=16):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(a), b)
                loss.backward()
                optimizer.step()
                guards.log(loss=loss.item())


CLEAN = (
    one_batch_on_purpose,
    full_batch,
    curriculum,
    contrastive,
    smoothed_and_weighted,
    rare_class,
    huge_targets,
    summed_loss,
    masked_language,
    copying_autoencoder,
    in_bits,
    continual,
)
