"""Loops that accumulate gradients over micro-batches, and count or weigh them wrongly."""

from __future__ import annotations

import torch
from corpus.loops.case import Attach, Case
from corpus.loops.small import Language, cnn, data_set, epoch, images, lines, mlp, points, texts
from torch.nn import functional as F


def not_divided(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts = mlp(), 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with attach(model, optimizer, spec={"accumulation": parts}) as guards:
        for index, (inputs, targets) in enumerate(points(40 * parts, size=8)):
            loss = F.cross_entropy(model(inputs), targets)
            guards.log(loss=loss)
            (loss if buggy else loss / parts).backward()
            if (index + 1) % parts == 0:
                optimizer.step()
                optimizer.zero_grad()


def divided_twice(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts = cnn(), 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with attach(model, optimizer, spec={"accumulation": parts}) as guards:
        for index, (inputs, targets) in enumerate(images(30 * parts, size=8)):
            loss = F.cross_entropy(model(inputs), targets)
            guards.log(loss=loss)
            (loss / parts).backward()
            if (index + 1) % parts == 0:
                if buggy:
                    for parameter in model.parameters():
                        parameter.grad /= parts
                optimizer.step()
                optimizer.zero_grad()


def last_group_dropped(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, parts, batches = mlp(), data_set(80), 4, 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer):
        for number in range(12):
            optimizer.zero_grad()
            for index, (inputs, targets) in enumerate(epoch(data, 8, number)):
                group = parts if index < batches - batches % parts else batches % parts
                (F.cross_entropy(model(inputs), targets) / group).backward()
                if (index + 1) % parts == 0 or (index + 1 == batches and not buggy):
                    optimizer.step()
                    optimizer.zero_grad()


def last_group_joins_the_next_epoch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, data, parts, batches = mlp(), data_set(80), 4, 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with attach(model, optimizer, spec={"accumulation": parts}):
        for number in range(16):
            for index, (inputs, targets) in enumerate(epoch(data, 8, number)):
                if index >= batches - batches % parts and not buggy:
                    break  # the rest of the epoch is left out
                (F.cross_entropy(model(inputs), targets) / parts).backward()
                if (index + 1) % parts == 0:
                    optimizer.step()
                    optimizer.zero_grad()


def first_group_of_one(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts = cnn(), 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, spec={"accumulation": parts}):
        for index, (inputs, targets) in enumerate(images(35 * parts, size=8)):
            (F.cross_entropy(model(inputs), targets) / parts).backward()
            if (index if buggy else index + 1) % parts == 0:
                optimizer.step()
                optimizer.zero_grad()


def cleared_each_micro_batch(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts = mlp(classes=1), 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer):
        for index, (inputs, targets) in enumerate(lines(40 * parts, size=8)):
            if buggy or index % parts == 0:
                optimizer.zero_grad()
            (F.mse_loss(model(inputs), targets) / parts).backward()
            if (index + 1) % parts == 0:
                optimizer.step()


def mean_of_unequal_means(attach: Attach, buggy: bool) -> None:
    torch.manual_seed(0)
    model, parts, ignored = Language(), 4, -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    stream = [(tokens, following.clone()) for tokens, following in texts(30 * parts, size=4)]
    for index, (_, following) in enumerate(stream):
        following[:, 2 if index % parts else 16 :] = ignored  # one long micro-batch, then three short ones
    with attach(model, optimizer, spec={"accumulation": parts, "ignore_index": ignored}) as guards:
        for first in range(0, len(stream), parts):
            group = stream[first : first + parts]
            counted = sum(int((following != ignored).sum()) for _, following in group)
            optimizer.zero_grad()
            for tokens, following in group:
                logits = model(tokens).flatten(0, 1)
                loss = F.cross_entropy(logits, following.flatten(), ignore_index=ignored)
                guards.log(loss=loss, targets=following)
                share = 1 / parts if buggy else int((following != ignored).sum()) / counted
                (share * loss).backward()
            optimizer.step()


CASES: tuple[Case, ...] = (
    Case("accumulation-not-divided", "Four micro-batches' mean losses are summed: the gradient is four times too large.",
         frozenset({"accumulation"}), 0, not_divided, needs="spec: accumulation; log: each micro-batch's loss, before backward"),
    Case("accumulation-divided-twice", "The loss is divided by the number of micro-batches and then the gradients again.",
         frozenset({"accumulation"}), 0, divided_twice,
         needs="spec: accumulation; log: each micro-batch's loss, before backward"),
    Case("last-group-dropped", "Ten micro-batches in fours: the last two are cleared at the next epoch's start, unused.",
         frozenset({"accumulation", "gradient-fresh", "step-budget"}), 2, last_group_dropped, "tomhosking/torchseq#8"),
    Case("last-group-joins-the-next-epoch", "Ten micro-batches in fours: the last two stay and make the next group six.",
         frozenset({"accumulation", "gradient-fresh"}), 2, last_group_joins_the_next_epoch, "meta-pytorch/torchtune#2745",
         "spec: accumulation"),
    Case("first-group-of-one", "index % 4 == 0 steps after the first micro-batch: a group of one, then groups of four.",
         frozenset({"accumulation"}), 0, first_group_of_one, "rasbt/LLMs-from-scratch#300", "spec: accumulation"),
    Case("cleared-each-micro-batch", "zero_grad at each micro-batch: of four gradients only the last is used.",
         frozenset({"accumulation", "gradient-fresh"}), 0, cleared_each_micro_batch),
    Case("mean-of-unequal-means", "Micro-batches of 64 and of 8 tokens weigh the same: a mean of means.",
         frozenset({"accumulation", "reduction"}), 0, mean_of_unequal_means, "huggingface/transformers#34191",
         "spec: accumulation, ignore_index; log: each micro-batch's loss and targets, before backward"),
)  # fmt: skip
