"""Loops whose data is wrong: validation rows that are trained on, batches that come again, and the cases of `targets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from corpus.loops import targets
from corpus.loops.case import Attach
from corpus.loops.materials import (
    D,
    K,
    Language,
    batches,
    buggy,
    classifier,
    labelled,
    train_classifier,
    train_language,
    windows,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

STEPS = 30


@buggy(
    "validation rows are drawn from all rows, those of training among them", "split",
    source="the commonest leak: a random sample for validation that is not taken out of training", needs="guards.split",
)  # fmt: skip
def validation_rows_in_training(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    train = torch.arange(len(x)) if bug else order[64:]
    validation = order[:64]
    model, optimizer = classifier()
    with attach(model, optimizer) as guards:
        guards.split(train=TensorDataset(x[train], y[train]), validation=TensorDataset(x[validation], y[validation]))
        train_classifier(guards, model, optimizer, batches(x[train], y[train], STEPS), tell=False)


class Oversampled(Dataset[tuple[Tensor, Tensor]]):
    """Rows by index, some of them several times."""

    def __init__(self, x: Tensor, y: Tensor, rows: Tensor) -> None:
        self.x, self.y, self.rows = x, y, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[self.rows[index]], self.y[self.rows[index]]


@buggy(
    "the rare class is oversampled before the split, so its copies are on both sides", "split",
    source="oversampling before the split", needs="guards.split",
)  # fmt: skip
def oversampled_before_split(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    draw = torch.Generator().manual_seed(3)

    def balanced(rows: Tensor) -> Tensor:
        rare = rows[y[rows] == 0]
        return torch.cat([rows, rare, rare])

    rows = torch.randperm(len(x), generator=draw)
    if bug:
        rows = balanced(rows)
        rows = rows[torch.randperm(len(rows), generator=draw)]
        held_out, kept = rows[:64], rows[64:]
    else:
        held_out, kept = rows[:64], balanced(rows[64:])
    model, optimizer = classifier()
    train, validation = Oversampled(x, y, kept), Oversampled(x, y, held_out)
    with attach(model, optimizer) as guards:
        guards.split(train=train, validation=validation)
        loader = DataLoader(train, 32, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            train_classifier(guards, model, optimizer, loader, tell=False)


@buggy(
    "flipped copies are added, all is shuffled and then split: the original of a validation row is trained on", "split",
    source="augmentation before the split", needs="guards.split on the numbers of the originals",
)  # fmt: skip
def augmented_before_split(attach: Attach, bug: bool) -> None:
    x, y = labelled(128)
    everything, labels, origin = torch.cat([x, x.flip(1)]), torch.cat([y, y]), torch.arange(128).repeat(2)
    draw = torch.Generator().manual_seed(3)
    order = torch.randperm(256, generator=draw) if bug else torch.argsort(origin, stable=True)
    train, validation = order[:192], order[192:]
    model, optimizer = classifier()
    with attach(model, optimizer) as guards:
        guards.split(train=origin[train], validation=origin[validation])
        train_classifier(guards, model, optimizer, batches(everything[train], labels[train], STEPS), tell=False)


@buggy(
    "windows of a token stream overlap and are split at random: no equal rows, but long stretches on both sides", "split",
    source="random split of sliding windows, as in many character models", needs="guards.split",
)  # fmt: skip
def overlapping_windows(attach: Attach, bug: bool) -> None:
    stream = torch.randint(64, (1200,), generator=torch.Generator().manual_seed(0))
    rows = stream.unfold(0, 13, 4)
    draw = torch.Generator().manual_seed(3)
    if bug:
        order = torch.randperm(len(rows), generator=draw)
        train, validation = rows[order[60:]], rows[order[:60]]
    else:
        train, validation = stream[:960].unfold(0, 13, 4), stream[960:].unfold(0, 13, 4)
    model = Language(vocabulary=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as guards:
        guards.split(train=train, validation=validation)
        train_language(guards, model, optimizer, windows(train, STEPS))


@buggy(
    "next(iter(loader)) at each step: a new iterator each time, so always the first batch", "repeats", effect=1,
    source="the commonest question about DataLoader iterators", needs="guards.log(inputs=, targets=)",
)  # fmt: skip
def iterator_again_and_again(attach: Attach, bug: bool) -> None:
    loader = DataLoader(TensorDataset(*labelled()), batch_size=8)
    model, optimizer = classifier()

    def pairs() -> Iterator[Any]:
        iterator = iter(loader)
        for _ in range(STEPS):
            yield next(iter(loader)) if bug else next(iterator)

    with attach(model, optimizer) as guards:
        train_classifier(guards, model, optimizer, pairs())


@buggy(
    "every worker seeds NumPy with 0, so two workers deliver the same samples, one after the other", "repeats", effect=1,
    source="worker_init_fn=lambda i: np.random.seed(0); PyTorch before 1.9 by itself",
    needs="guards.log(inputs=, targets=)",
)  # fmt: skip
def workers_with_equal_seeds(attach: Attach, bug: bool) -> None:
    centres = np.random.default_rng(9).normal(size=(K, D))
    workers = [np.random.default_rng(0 if bug else worker) for worker in range(2)]

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(STEPS):
            worker = workers[step % 2]
            y = worker.integers(K, size=32)
            yield torch.tensor(centres[y] + 0.8 * worker.normal(size=(32, D))).float(), torch.tensor(y)

    model, optimizer = classifier()
    with attach(model, optimizer) as guards:
        train_classifier(guards, model, optimizer, pairs())


@buggy(
    "a stream is not divided among its workers: each of the two yields all of it, so every batch comes twice", "repeats",
    effect=1, source="an IterableDataset without get_worker_info", needs="guards.log(inputs=, targets=)",
)  # fmt: skip
def stream_from_every_worker(attach: Attach, bug: bool) -> None:
    x, y = labelled(32 * STEPS)
    chunks = list(zip(x.split(32), y.split(32), strict=True))
    copies = [(a.clone(), b.clone()) for a, b in chunks]  # what another process sends is another tensor
    shares = [chunks, copies] if bug else [chunks[0::2], chunks[1::2]]
    turns = [pair for pairs in zip(*shares, strict=True) for pair in pairs][:STEPS]
    model, optimizer = classifier()
    with attach(model, optimizer) as guards:
        train_classifier(guards, model, optimizer, turns)


@buggy(
    "the sampler is seeded anew in each epoch (set_epoch is forgotten): all epochs in one order", "repeats", effect=8,
    source="DistributedSampler without set_epoch", needs="guards.log(inputs=, targets=)",
)  # fmt: skip
def epochs_in_one_order(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model, optimizer = classifier()
    with attach(model, optimizer) as guards:
        for epoch in range(4):
            train_classifier(guards, model, optimizer, batches(x, y, 8, seed=0 if bug else epoch))


CASES = (
    validation_rows_in_training, oversampled_before_split, augmented_before_split, overlapping_windows,
    iterator_again_and_again, workers_with_equal_seeds, stream_from_every_worker, epochs_in_one_order, *targets.CASES,
)  # fmt: skip
