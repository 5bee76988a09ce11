"""Legitimate loops whose gradients look odd: accumulated, clipped, penalised, assigned by hand, skipped or exactly zero."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, Language, V, batches, clean, labelled, mlp, next_token, text, windows
from torch import nn

STEPS = 40


@clean
def accumulation_with_remainder(attach: Attach) -> None:
    """four batches to a step, each loss divided by four; the epoch's last step has only two"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = labelled(320)
    attach(model, optimizer, spec={"accumulation": 4})
    for _ in range(6):
        size = 32
        for index in range(10):
            micro = slice(index * size, (index + 1) * size)
            group = min(4, 10 - index // 4 * 4)
            (F.cross_entropy(model(x[micro]), y[micro]) / group).backward()
            if (index + 1) % 4 == 0 or index == 9:
                optimizer.step()
                optimizer.zero_grad()


@clean
def accumulation_silent(attach: Attach) -> None:
    """accumulation over three batches that nobody declared"""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for index, (x, y) in enumerate(batches(*labelled(), 60)):
        (F.cross_entropy(model(x), y) / 3).backward()
        if index % 3 == 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@clean
def clipped(attach: Attach) -> None:
    """gradients clipped by norm to a bound that they exceed at every step"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    attach(model, optimizer, spec={"clip_norm": 0.1})
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


@clean
def clipped_by_value(attach: Attach) -> None:
    """gradients clipped by value, in place, between backward and step"""
    model = mlp()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()


@clean
def noisy_gradients(attach: Attach) -> None:
    """gradient noise is added to every gradient, as private training does"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad += 0.01 / (1 + step) ** 0.55 * torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@clean
def zeroed_not_none(attach: Attach) -> None:
    """zero_grad(set_to_none=False) at the end of each step: gradients are zeros, not None, when backward starts"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as guards:
        for x, y in batches(*labelled(), STEPS):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            guards.log(loss=loss.item() / math.log(2))  # in bits


@clean
def zeroed_by_hand(attach: Attach) -> None:
    """gradients are set to None by a loop over the parameters, after the step"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None


@clean
def assigned_by_hand(attach: Attach) -> None:
    """torch.autograd.grad, and the result put into p.grad: backward() is never called, nor zero_grad"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    parameters = list(model.parameters())
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


@clean
def surgery(attach: Attach) -> None:
    """two tasks whose gradients are projected against each other (PCGrad): two backward passes, one step"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        logits = model(x)
        first, second = F.cross_entropy(logits, y), F.multi_margin_loss(logits, (y + 1) % K)
        a = torch.cat([g.flatten() for g in torch.autograd.grad(first, parameters, retain_graph=True)])
        b = torch.cat([g.flatten() for g in torch.autograd.grad(0.1 * second, parameters)])
        if (dot := a @ b) < 0:
            a, b = a - dot / b.square().sum() * b, b - dot / a.square().sum() * a
        for parameter, piece in zip(parameters, (a + b).split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter)
        optimizer.step()


@clean
def sharpness_aware(attach: Attach) -> None:
    """SAM: a backward pass at the weights, one at shifted weights, gradients zeroed between, weights put back"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            shifts = [0.05 * p.grad / (norm + 1e-12) for p in model.parameters() if p.grad is not None]
            for parameter, shift in zip(model.parameters(), shifts, strict=True):
                parameter.add_(shift)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter, shift in zip(model.parameters(), shifts, strict=True):
                parameter.sub_(shift)
        optimizer.step()
        optimizer.zero_grad()


@clean
def two_backward_passes(attach: Attach) -> None:
    """two losses of the same graph, each with a backward of its own (retain_graph), before one step"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        logits = model(x)
        F.cross_entropy(logits, y).backward(retain_graph=True)
        (1e-3 * logits.square().mean()).backward()
        optimizer.step()


@clean
def gradient_penalty(attach: Attach) -> None:
    """a penalty on the gradient by the inputs, with create_graph: a double backward"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, H), nn.Softplus(), nn.Linear(H, K))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        x = x.clone().requires_grad_(True)
        loss = F.cross_entropy(model(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        optimizer.zero_grad()
        (loss + slope.square().sum()).backward()
        optimizer.step()


@clean
def half_precision_skips(attach: Attach) -> None:
    """float16 autocast with a GradScaler whose first scale overflows: it skips a few steps, then trains"""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=1000)
    with attach(model, optimizer, scaler=scaler) as guards:
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            guards.log(loss=loss.item(), scale=scaler.get_scale())


@clean
def skipped_when_not_finite(attach: Attach) -> None:
    """a bad batch gives a gradient that is not finite; the loop itself drops the step, as many large runs do"""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        optimizer.zero_grad(set_to_none=True)
        if step == 17:
            x[3, 5] = float("inf")
        F.cross_entropy(model(x), y).backward()
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)):
            continue
        optimizer.step()


@clean
def dead_for_a_while(attach: Attach) -> None:
    """hidden units that are off at first: their rows get exactly zero gradient for some steps, the layer does not"""
    model = mlp()
    with torch.no_grad():
        model[0].bias[:10] = -30.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def padding_row(attach: Attach) -> None:
    """an embedding with padding_idx, whose padding row never gets a gradient; the loss ignores the padding"""
    model = Language()
    model.embedding = nn.Embedding(V, D, padding_idx=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"padding": 0, "ignore_index": -100}) as guards:
        for x, y in windows(text(), STEPS):
            x, y = x.clone(), y.clone()
            x[: len(x) // 2, 8:], y[: len(y) // 2, 7:] = 0, -100
            y[y == 0] = -100
            loss = next_token(model(x), y, ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss, inputs=x, targets=y)


CLEAN = (
    accumulation_with_remainder,
    accumulation_silent,
    clipped,
    clipped_by_value,
    noisy_gradients,
    zeroed_not_none,
    zeroed_by_hand,
    assigned_by_hand,
    surgery,
    sharpness_aware,
    two_backward_passes,
    gradient_penalty,
    half_precision_skips,
    skipped_when_not_finite,
    dead_for_a_while,
    padding_row,
)
