"""Loops that clip gradients too late, too early, of the wrong parameters, or in another sense than declared."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, cnn, images, lines, points, texts
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


def after_the_step(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = Pair(classes=1), 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer, spec={"clip_norm": largest}):
        for inputs, targets in lines(50):
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            if not buggy:
                clip_grad_norm_(model.parameters(), largest)
            optimizer.step()
            if buggy:
                clip_grad_norm_(model.parameters(), largest)


def before_the_backward(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = cnn(), 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, spec={"clip_norm": largest}):
        for inputs, targets in images(40):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            if buggy:
                clip_grad_norm_(model.parameters(), largest)  # no gradient is there yet
            loss.backward()
            if not buggy:
                clip_grad_norm_(model.parameters(), largest)
            optimizer.step()


def of_the_head_alone(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = Pair(classes=1), 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer, spec={"clip_norm": largest}):
        for inputs, targets in lines(50):
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            clip_grad_norm_((model.head if buggy else model).parameters(), largest)
            optimizer.step()


def each_parameter_by_itself(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = Language(), 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    with attach(model, optimizer, spec={"clip_norm": largest}):
        for tokens, following in texts(40):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()).backward()
            for parameters in model.parameters() if buggy else [list(model.parameters())]:
                clip_grad_norm_(parameters, largest)
            optimizer.step()


def value_in_place_of_norm(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, largest = Pair(), 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with attach(model, optimizer, spec={"clip_norm": largest}):
        for inputs, targets in points(50):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            (clip_grad_value_ if buggy else clip_grad_norm_)(model.parameters(), largest)
            optimizer.step()


def each_micro_batch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts, largest = Pair(classes=1), 4, 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with attach(model, optimizer, spec={"clip_norm": largest, "accumulation": parts}):
        for index, (inputs, targets) in enumerate(lines(40 * parts, size=8)):
            (F.mse_loss(model(inputs), targets) / parts).backward()
            full = (index + 1) % parts == 0
            if buggy and not full:  # clipped so far, and the last one added on top
                clip_grad_norm_(model.parameters(), largest)
            if full:
                if not buggy:
                    clip_grad_norm_(model.parameters(), largest)
                optimizer.step()
                optimizer.zero_grad()


CASES: tuple[Case, ...] = (
    Case("clipped-after-the-step", "clip_grad_norm_ stands after optimizer.step(): it clips what was used already.",
         frozenset({"clipping"}), 0, after_the_step, needs="spec: clip_norm"),
    Case("clipped-before-the-backward", "clip_grad_norm_ stands before backward, when the gradients are gone.",
         frozenset({"clipping"}), 0, before_the_backward, needs="spec: clip_norm"),
    Case("clipped-the-head-alone", "Only the head's parameters are clipped; the norm of all is above the bound.",
         frozenset({"clipping"}), 0, of_the_head_alone, needs="spec: clip_norm"),
    Case("clipped-each-parameter-by-itself", "Each parameter is clipped to the bound meant for all together.",
         frozenset({"clipping"}), 0, each_parameter_by_itself, needs="spec: clip_norm"),
    Case("clipped-by-value", "clip_grad_value_ with the bound that is meant for the norm.",
         frozenset({"clipping"}), 0, value_in_place_of_norm, needs="spec: clip_norm"),
    Case("clipped-within-the-accumulation", "The running sum is clipped, the last micro-batch is added on top unclipped.",
         frozenset({"clipping"}), 0, each_micro_batch, needs="spec: clip_norm, accumulation"),
)  # fmt: skip
