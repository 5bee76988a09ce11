"""Loops in which a number stops being finite, in one layer or one batch, at a step in the middle."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, Pair, cnn, images, lines, points, texts
from torch import Tensor, nn
from torch.nn import functional as F


def fully_masked_row(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    with attach(model, optimizer):
        for step, (tokens, following) in enumerate(texts(40)):
            padded = torch.zeros_like(tokens, dtype=torch.bool)
            if step % 3 == 0:
                padded[0, 10:] = True
            if step == 20:
                padded[1, 0] = True  # padding on the left: the first row of the causal mask is empty
            allowed = ~padded[:, None, :]
            if not buggy:
                allowed = allowed | torch.eye(tokens.shape[1], dtype=torch.bool)  # a token may always see itself
            losses = F.cross_entropy(model(tokens, allowed).flatten(0, 1), following.flatten(), reduction="none")
            optimizer.zero_grad()
            losses[~padded.flatten()].mean().backward()
            optimizer.step()


def distance_of_equal_points(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(50)):
            left, right = inputs[:16], inputs[16:].clone()
            same = targets[:16] == targets[16:]
            if step == 25:
                right[0], same[0] = left[0], True  # a pair of one point with itself
            gap = (model(left) - model(right)).square().sum(dim=-1)
            distance = gap.sqrt() if buggy else torch.where(gap > 0, gap, 1.0).sqrt() * (gap > 0)
            optimizer.zero_grad()
            torch.where(same, distance, F.relu(3 - distance)).mean().backward()
            optimizer.step()


def infinite_feature(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair(classes=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(lines(40)):
            counts = inputs.exp()
            if step == 15:
                counts[3, 5] = 0.0  # a count of zero in the data
            features = counts.log() if buggy else counts.clamp(min=1e-4).log()
            optimizer.zero_grad()
            F.mse_loss(model(features), targets).backward()
            optimizer.step()


class Standardised(nn.Module):
    """A convolutional network that standardises each image by its own mean and deviation first."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor, self.network = floor, cnn()

    def forward(self, images: Tensor) -> Tensor:
        centred = images - images.mean(dim=(-2, -1), keepdim=True)
        return self.network(centred / centred.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=self.floor))


def blank_image(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Standardised(0.0 if buggy else 1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(images(40)):
            if step == 18:
                inputs[2] = 0.0  # an image that failed to load
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def not_finite_is_skipped(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer):
        for step, (inputs, targets) in enumerate(points(50)):
            logits = model(inputs)
            chances = torch.softmax(logits, dim=-1)
            if step == 22:  # a class that is ruled out for a sample
                chances = chances * F.one_hot(targets, 4)
            entropy = -(chances * (chances if buggy else chances.clamp(min=1e-9)).log()).nansum(dim=-1).mean()
            loss = F.cross_entropy(logits, targets) + 0.01 * entropy
            if not torch.isfinite(loss):
                continue  # from the next step on: every one of them
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("fully-masked-row", "In one batch a row of the attention mask is empty: softmax of nothing but -inf is NaN.",
         frozenset({"finite"}), 20, fully_masked_row, "pytorch/pytorch#41508"),
    Case("distance-of-equal-points", "sqrt(0) in a distance: the loss is finite, its gradient is NaN, at step 25.",
         frozenset({"finite"}), 25, distance_of_equal_points, "pytorch/pytorch#2421"),
    Case("infinite-feature", "log(0) in the features of one batch.", frozenset({"finite"}), 15, infinite_feature),
    Case("blank-image", "An image of zeros is divided by its deviation, 0 / 0 before the first layer.",
         frozenset({"finite"}), 18, blank_image),
    Case("not-finite-is-skipped", "A NaN gradient destroys the weights at step 22; the loop then skips each loss that is not "
         "finite, in silence.", frozenset({"finite"}), 22, not_finite_is_skipped),
)  # fmt: skip
