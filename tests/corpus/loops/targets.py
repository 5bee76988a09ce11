"""Loops whose targets are wrong: not the next token, padding that counts, labels that are not what they seem."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from corpus.loops.case import Attach
from corpus.loops.materials import (
    K,
    Language,
    batches,
    buggy,
    classifier,
    labelled,
    next_token,
    text,
    train_classifier,
    train_language,
    windows,
)
from torch import Tensor

STEPS = 30


@buggy(
    "targets are the inputs themselves: the model learns to copy", "targets",
    source="a collator for models that shift inside, used with one that does not",
    needs="spec.causal, guards.log(inputs=, targets=)",
)  # fmt: skip
def targets_not_shifted(attach: Attach, bug: bool) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"causal": True}) as guards:
        train_language(guards, model, optimizer, ((x, x if bug else y) for x, y in windows(text(), STEPS)))


@buggy(
    "the data set shifts the targets and the training loop shifts them once more: two tokens ahead", "targets",
    source="shift in both places", needs="spec.causal, guards.log(inputs=, targets=)",
)  # fmt: skip
def targets_shifted_by_two(attach: Attach, bug: bool) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pairs = windows(text(), STEPS)
    with attach(model, optimizer, spec={"causal": True}) as guards:
        train_language(guards, model, optimizer, ((x[:, :-1], y[:, 1:]) if bug else (x, y) for x, y in pairs))


@buggy(
    "the model shifts logits against labels itself, and gets labels that the data set has shifted", "targets",
    source="labels for a model with an internal shift", needs="spec.causal, guards.log of the pairs that the loss sees",
)  # fmt: skip
def shifted_in_data_and_model(attach: Attach, bug: bool) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"causal": True}) as guards:
        for x, y in windows(text(), STEPS):
            labels = y if bug else x
            logits, targets = model(x)[:, :-1], labels[:, 1:]
            loss = next_token(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item(), inputs=x[:, :-1], targets=targets)


def padded(pad: int, target: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of sequences of unequal length, without the token `pad`: inputs padded with it, targets with `target`."""
    for rows, _ in windows(text(length=14), STEPS):
        tokens = 1 + rows % 11
        tokens = tokens + (tokens >= pad) if pad else tokens
        short = torch.arange(rows.shape[1]) >= 4 + torch.arange(len(rows))[:, None] % 8
        yield tokens.masked_fill(short, pad)[:, :-1], tokens.masked_fill(short, target)[:, 1:]


@buggy(
    "targets are padded with the padding token and the loss is told nothing of it: most of it is padding", "padding",
    source="cross entropy over padded batches without ignore_index",
    needs="spec.padding, guards.log(inputs=, targets=)",
)  # fmt: skip
def padding_in_the_loss(attach: Attach, bug: bool) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with attach(model, optimizer, spec={"padding": 0}) as guards:
        train_language(guards, model, optimizer, padded(0, 0 if bug else -100))


@buggy(
    "the loss ignores index 0, the tokenizer pads with 2: padding counts", "padding",
    source="a hard-coded ignore_index and another tokenizer",
    needs="spec.padding, spec.ignore_index, guards.log(inputs=, targets=)",
)  # fmt: skip
def ignored_index_is_not_padding(attach: Attach, bug: bool) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ignored = 0 if bug else 2
    with attach(model, optimizer, spec={"padding": 2, "ignore_index": ignored}) as guards:
        train_language(guards, model, optimizer, padded(2, 2), ignore_index=ignored)


@buggy(
    "a wrong column is read as the label: it is 0 throughout", "labels",
    source="a constant column", needs="spec.classes, guards.log(targets=)",
)  # fmt: skip
def one_label_only(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model, optimizer = classifier()
    with attach(model, optimizer, spec={"classes": K}) as guards:
        train_classifier(guards, model, optimizer, batches(x, torch.zeros_like(y) if bug else y, STEPS))


@buggy(
    "labels count from 1, and the head was made one wider so that nothing crashes", "labels",
    source="MATLAB files and other data that count from one", needs="spec.classes, guards.log(targets=)",
)  # fmt: skip
def labels_from_one(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model, optimizer = classifier(K + bug)
    with attach(model, optimizer, spec={"classes": K}) as guards:
        train_classifier(guards, model, optimizer, batches(x, y + bug, STEPS))


@buggy(
    "labels pass through an integer division: two of the four classes never occur", "labels",
    source="a label map applied twice", needs="spec.classes, guards.log(targets=)",
)  # fmt: skip
def labels_not_covered(attach: Attach, bug: bool) -> None:
    x, y = labelled()
    model, optimizer = classifier()
    with attach(model, optimizer, spec={"classes": K}) as guards:
        train_classifier(guards, model, optimizer, batches(x, y // 2 if bug else y, STEPS))


CASES = (
    targets_not_shifted, targets_shifted_by_two, shifted_in_data_and_model, padding_in_the_loss,
    ignored_index_is_not_padding, one_label_only, labels_from_one, labels_not_covered,
)  # fmt: skip
