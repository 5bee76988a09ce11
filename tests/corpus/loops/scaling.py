"""Loops in half precision with a GradScaler, used in the wrong order, for a part only, or skipping every step."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, cnn, images, mlp, points, texts
from torch import Tensor, nn
from torch.amp import GradScaler, autocast
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_


def optimizer_stepped_itself(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    with attach(model, optimizer, scaler=scaler):
        for inputs, targets in points(40):
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            if buggy:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()


def clipped_before_unscaling(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = cnn(), 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    with attach(model, optimizer, scaler=scaler, spec={"clip_norm": largest}):
        for inputs, targets in images(40):
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            if not buggy:
                scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), largest)
            scaler.step(optimizer)
            scaler.update()


def unscaled_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    with attach(model, optimizer, scaler=scaler):
        for inputs, targets in points(40):
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            if buggy:  # unscaled by hand, to log their norm; step() does it again
                for parameter in model.parameters():
                    parameter.grad /= scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()


def one_term_unscaled(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    model.rebuild = nn.Linear(32, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    with attach(model, optimizer, scaler=scaler) as guards:
        for inputs, targets in points(40):
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                hidden = model.encoder(inputs)
                loss = F.cross_entropy(model.head(hidden), targets)
                rebuilt = F.mse_loss(model.rebuild(hidden).float(), inputs)
            guards.log(losses={"ce": loss, "rebuilt": rebuilt})
            if buggy:
                scaler.scale(loss).backward(retain_graph=True)
                rebuilt.backward()
            else:
                scaler.scale(loss + rebuilt).backward()
            scaler.step(optimizer)
            scaler.update()


class Normalised(nn.Module):
    """A classifier behind a running mean of its inputs, which one infinite value spoils for good."""

    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.guarded, self.network = guarded, mlp()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.guarded or bool(inputs.isfinite().all()):
            self.mean.lerp_(inputs.mean(dim=0), 0.1)
        return self.network(torch.nan_to_num(inputs, posinf=0.0) - self.mean)


def every_step_skipped(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Normalised(guarded=not buggy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    with attach(model, optimizer, scaler=scaler):
        for step, (inputs, targets) in enumerate(points(50)):
            if step == 20:
                inputs[4, 2] = float("inf")
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # skipped from here on, and the scale halves without end
            scaler.update()


def backs_off_too_little(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scaler = GradScaler(
        "cpu", init_scale=2.0**15, growth_factor=8.0, growth_interval=12, backoff_factor=0.999 if buggy else 0.5
    )
    with attach(model, optimizer, scaler=scaler):
        for tokens, following in texts(50):
            optimizer.zero_grad()
            with autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


CASES: tuple[Case, ...] = (
    Case("optimizer-stepped-itself", "The loss is scaled, and optimizer.step() is called in place of scaler.step(optimizer).",
         frozenset({"loss-scale"}), 0, optimizer_stepped_itself, needs="scaler="),
    Case("clipped-before-unscaling", "Scaled gradients are clipped and then unscaled: steps are a thousand times too "
         "small.", frozenset({"clipping", "loss-scale"}), 0, clipped_before_unscaling,
         "Lightning-AI/pytorch-lightning#9599", "scaler=; spec: clip_norm"),
    Case("unscaled-twice", "Gradients are divided by the scale by hand, then again by the scaler.",
         frozenset({"loss-scale"}), 0, unscaled_twice, needs="scaler="),
    Case("one-term-unscaled", "One of two losses is not scaled before backward: its gradient is a thousand times too small.",
         frozenset({"loss-scale", "loss-terms"}), 0, one_term_unscaled, needs="scaler=; log: the terms of the loss"),
    Case("every-step-skipped", "One infinite input spoils a running mean: from step 20 on the scaler skips every step.",
         frozenset({"loss-scale", "finite"}), 20, every_step_skipped, needs="scaler="),
    Case("backs-off-too-little", "A backoff factor of 0.999: after the first overflow the scale stays too large, all is skipped.",
         frozenset({"loss-scale", "overflow"}), 24, backs_off_too_little, needs="scaler="),
)  # fmt: skip
