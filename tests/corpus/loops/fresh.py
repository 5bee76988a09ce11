"""Loops that step on gradients of another time: left over, cleared too early, counted twice or used twice."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, cnn, epoch, images, lines, mlp, points, texts
from torch import Tensor, nn
from torch.nn import functional as F


def no_zero_grad(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with attach(model, optimizer):
        for inputs, targets in points(50):
            if not buggy:
                optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def zero_grad_once_an_epoch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data = cnn(), tuple(torch.cat(column) for column in zip(*images(10), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for number in range(4):
            optimizer.zero_grad()
            for inputs, targets in epoch(data, 16, number):
                if not buggy:
                    optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()


def zero_grad_before_the_step(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            loss = F.cross_entropy(model(inputs), targets)
            if buggy:
                loss.backward()
                optimizer.zero_grad()
            else:
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()


def zero_grad_of_the_wrong_optimizer(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    body = torch.optim.SGD(model.encoder.parameters(), lr=0.02, momentum=0.9)
    head = torch.optim.AdamW(model.head.parameters(), lr=5e-3)
    with attach(model.encoder, body):
        for inputs, targets in points(50):
            head.zero_grad()
            (head if buggy else body).zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            body.step()
            head.step()


def zero_grad_of_a_copy(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    zeroed: nn.Module = model
    with attach(model, optimizer):
        for step, (tokens, following) in enumerate(texts(50)):
            if step == 25 and buggy:  # the best weights are loaded into a second model for its evaluation
                zeroed = Language()
                zeroed.load_state_dict(model.state_dict())
            zeroed.zero_grad()
            F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()).backward()
            optimizer.step()


def backward_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp(classes=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with attach(model, optimizer):
        for inputs, targets in lines(50):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward(retain_graph=buggy)
            if buggy:
                loss.backward()  # left in after a look at the gradients
            optimizer.step()


def shared_part_counted_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    aside = nn.Linear(32, 8)
    model.aside = aside
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with attach(model, optimizer):
        for inputs, targets in points(40):
            hidden = model.encoder(inputs)
            first, second = F.cross_entropy(model.head(hidden), targets), F.mse_loss(aside(hidden), inputs)
            optimizer.zero_grad()
            first.backward(retain_graph=True)
            (first + second if buggy else second).backward()  # the first is in the sum again
            optimizer.step()


def stepped_twice_on_one_gradient(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def train_step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    with attach(model, optimizer):
        for inputs, targets in images(30):
            train_step(inputs, targets)
            if buggy:
                optimizer.step()


def step_without_backward(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with attach(model, optimizer):
        for inputs, targets in points(60, size=16):
            loss = F.cross_entropy(model(inputs), targets)
            if loss.item() < 0.35:  # easy batches are skipped, but the step below is not
                if not buggy:
                    continue
            else:
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()


def frozen_with_a_gradient_left(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(40)):
            if step == 20:
                model.encoder.requires_grad_(False)
            for parameter in model.parameters():
                if parameter.requires_grad or not buggy:
                    parameter.grad = None
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def validation_adds_its_gradient(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, held_out = mlp(classes=1), next(lines(1, size=64, seed=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(lines(50)):
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            if step % 10 == 9:  # how large are the gradients on held-out data?
                loss = F.mse_loss(model(held_out[0]), held_out[1])
                if buggy:
                    loss.backward()
                else:
                    torch.autograd.grad(loss, list(model.parameters()))
            optimizer.step()


def zero_grad_of_a_part(attach: Attach, buggy: bool, steps: int = 60, first: int = 40) -> None:
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(steps)):
            (model.encoder if buggy and step >= first else model).zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("no-zero-grad", "zero_grad is missing: each step uses the sum of all gradients so far.",
         frozenset({"gradient-fresh"}), 1, no_zero_grad, "stackoverflow.com/questions/60335387"),
    Case("zero-grad-once-an-epoch", "zero_grad stands before the loop over batches: gradients add up within each epoch.",
         frozenset({"gradient-fresh"}), 1, zero_grad_once_an_epoch),
    Case("zero-grad-before-the-step", "zero_grad stands between backward and step: there is nothing left to step on.",
         frozenset({"gradient-fresh", "gradient-reach"}), 0, zero_grad_before_the_step),
    Case("zero-grad-of-the-wrong-optimizer", "Of two optimizers one is cleared twice and the other never.",
         frozenset({"gradient-fresh"}), 1, zero_grad_of_the_wrong_optimizer),
    Case("zero-grad-of-a-copy", "From step 25 on zero_grad is called on a copy of the model.",
         frozenset({"gradient-fresh"}), 25, zero_grad_of_a_copy),
    Case("zero-grad-of-a-part", "From step 40 on the encoder's gradients alone are cleared, and those of the head add up.",
         frozenset({"gradient-fresh"}), 40, zero_grad_of_a_part),
    Case("backward-twice", "backward is called twice on one graph: all gradients are doubled.",
         frozenset({"gradient-fresh"}), 0, backward_twice),
    Case("first-loss-counted-twice", "Backward on the first loss, then on the sum of both: the first counts twice.",
         frozenset({"gradient-fresh"}), 0, shared_part_counted_twice),
    Case("stepped-twice-on-one-gradient", "optimizer.step() in the training step and again in the loop, on the same gradient.",
         frozenset({"gradient-fresh"}), 1, stepped_twice_on_one_gradient),
    Case("step-without-backward", "Easy batches skip backward but not the step: old gradients are used again.",
         frozenset({"gradient-fresh"}), 26, step_without_backward),
    Case("frozen-with-a-gradient-left", "A hand-written zero_grad passes over frozen parameters: an old gradient moves them on.",
         frozenset({"gradient-fresh", "frozen"}), 20, frozen_with_a_gradient_left),
    Case("validation-adds-its-gradient", "A look at the validation gradient is a backward between backward and step.",
         frozenset({"gradient-fresh", "accumulation"}), 9, validation_adds_its_gradient),
)  # fmt: skip
