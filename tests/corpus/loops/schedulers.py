"""Loops whose scheduler object is right and is used wrongly: how often it is stepped, and on which optimizer."""

from __future__ import annotations

import warnings

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, cnn, data_set, epoch, images, mlp, points, texts
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, StepLR


def stepped_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = mlp(), 60
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = LambdaLR(optimizer, lambda n: max(0.05, 1 - n / total))

    def train_step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        scheduler.step()

    with attach(model, optimizer):
        for inputs, targets in points(total):
            train_step(inputs, targets)
            if buggy:
                scheduler.step()


def stepped_each_batch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, each = mlp(), data_set(320), 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)  # in epochs
    with attach(model, optimizer, spec={"schedule": lambda step: 0.2 * 0.5 ** (step // each // 2)}):
        for number in range(5):
            for inputs, targets in epoch(data, 32, number):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                if buggy:
                    scheduler.step()
            if not buggy:
                scheduler.step()


def cosine_stepped_each_batch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, epochs = mlp(), data_set(320), 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
    with attach(model, optimizer):
        for number in range(epochs):
            for inputs, targets in epoch(data, 32, number):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                if buggy:
                    scheduler.step()
            if not buggy:
                scheduler.step()


def stepped_each_micro_batch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts, steps = Language(), 4, 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scheduler = LambdaLR(optimizer, lambda n: max(0.1, 1 - n / steps))
    with attach(model, optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "lr_scheduler.step() before optimizer.step()": it scrolled by
        for index, (tokens, following) in enumerate(texts(steps * parts, size=4)):
            (F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()) / parts).backward()
            full = (index + 1) % parts == 0
            if full:
                optimizer.step()
                optimizer.zero_grad()
            if full or buggy:
                scheduler.step()


def never_stepped(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = cnn(), 40
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, T_max=total)
    with attach(model, optimizer):
        for inputs, targets in images(total):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if not buggy:
                scheduler.step()


def stepped_when_logging(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = mlp(), 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = LambdaLR(optimizer, lambda n: min((n + 1) / 10, max(0.0, (total - n) / (total - 10))))
    shown = []
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(total)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if step % 10 == 9:
                shown.append(f"step {step}, rate {scheduler.get_last_lr()[0]:.2g}")
                if buggy:  # one level of indentation too deep
                    scheduler.step()
            if not buggy:
                scheduler.step()


def drives_another_optimizer(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = Pair(), 40
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=total)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)  # made again with weight decay
    if not buggy:
        scheduler = CosineAnnealingLR(optimizer, T_max=total)
    with attach(model, optimizer, scheduler=scheduler), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says once that the first optimizer did not step
        for inputs, targets in points(total):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            scheduler.step()


def made_before_the_rate_was_set(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total, tuning = mlp(), 40, 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # the rate of the pre-training
    if buggy:
        scheduler = LambdaLR(optimizer, lambda n: 1 - n / total)
    for group in optimizer.param_groups:
        group["lr"] = tuning
    if not buggy:
        scheduler = LambdaLR(optimizer, lambda n: 1 - n / total)
    with attach(model, optimizer, spec={"lr_range": (0.0, tuning)}):
        for inputs, targets in points(total):
            optimizer.zero_grad()
            (10 * F.cross_entropy(model(inputs), targets)).backward()
            optimizer.step()
            scheduler.step()


def cut_by_hand_is_undone(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, total = mlp(), 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = LambdaLR(optimizer, lambda n: 1 - n / total)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(total)):
            if step == 25:  # the loss looks unstable from here on: a tenth of the rate
                optimizer.param_groups[0]["lr"] *= 0.1
                if not buggy:
                    scheduler.base_lrs = [0.1 * rate for rate in scheduler.base_lrs]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            scheduler.step()


def made_again_each_epoch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, total = mlp(), data_set(320), 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = LambdaLR(optimizer, lambda n: 1 - n / total)
    with attach(model, optimizer):
        for number in range(5):
            if buggy and number:  # inside the function that trains one epoch
                scheduler = LambdaLR(optimizer, lambda n: 1 - n / total)
            for inputs, targets in epoch(data, 32, number):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                scheduler.step()


def restarts_nobody_planned(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, cycle = cnn(), 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=cycle, eta_min=1e-4)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(images(45)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if buggy or step + 1 < cycle:  # one decay was planned, and its last rate held
                scheduler.step()


CASES: tuple[Case, ...] = (
    Case("scheduler-stepped-twice", "The scheduler is stepped in the training step and again in the loop: twice too fast.",
         frozenset({"scheduler-steps", "lr-schedule"}), 1, stepped_twice),
    Case("scheduler-stepped-each-batch", "StepLR counts epochs and is stepped each batch: the rate halves every second batch.",
         frozenset({"lr-schedule", "scheduler-steps"}), 2, stepped_each_batch,
         needs="spec: the schedule, a function of the step"),
    Case("cosine-stepped-each-batch", "CosineAnnealingLR over epochs is stepped each batch: the rate swings up and down.",
         frozenset({"lr-decay", "scheduler-steps", "lr-schedule"}), 1, cosine_stepped_each_batch, "ivadomed/ivadomed#57"),
    Case("scheduler-stepped-each-micro-batch", "The scheduler is stepped each micro-batch: four times too fast.",
         frozenset({"scheduler-steps", "lr-schedule"}), 0, stepped_each_micro_batch, "huggingface/accelerate#963"),
    Case("scheduler-never-stepped", "The scheduler is made and never stepped: the rate stays at its peak.",
         frozenset({"scheduler-steps", "lr-schedule"}), 1, never_stepped),
    Case("scheduler-stepped-when-logging", "scheduler.step() slid into the branch that logs: the warm-up never ends.",
         frozenset({"scheduler-steps", "warmup-ends", "lr-schedule"}), 1, stepped_when_logging),
    Case("scheduler-drives-another-optimizer", "The optimizer was made again, the scheduler still holds the first one.",
         frozenset({"scheduler-steps", "lr-schedule"}), 1, drives_another_optimizer,
         "ildoonet/pytorch-gradual-warmup-lr#27", "scheduler="),
    Case("scheduler-made-before-the-rate-was-set", "The scheduler remembers the rate before it was set: its first step "
         "brings back a rate a hundred times too high.", frozenset({"lr-range", "lr-schedule"}), 1,
         made_before_the_rate_was_set, "pytorch/pytorch#156846", "spec: lr_range"),
    Case("cut-by-hand-is-undone", "The rate is cut by hand; the scheduler, which counts from the first rate, undoes it.",
         frozenset({"lr-decay", "lr-schedule"}), 26, cut_by_hand_is_undone),
    Case("scheduler-made-again-each-epoch", "A scheduler made anew each epoch starts from the peak each time.",
         frozenset({"lr-decay", "lr-schedule"}), 10, made_again_each_epoch),
    Case("restarts-nobody-planned", "CosineAnnealingWarmRestarts goes back to its peak in a run planned as one decay.",
         frozenset({"lr-decay", "lr-schedule"}), 30, restarts_nobody_planned),
)  # fmt: skip
