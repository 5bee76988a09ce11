"""RUN-37: what is on both sides of a split is found; what natural data repeat is not called a leak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from karat.core.errors import ConfigError
from karat.core.report import Violation
from karat.invariants.run import overlap
from karat.invariants.runtime import watch

WORDS = np.array([*b"the loss of a run is not what it seems when the data of it is "], dtype=np.int64)


def found(train: Any, validation: Any) -> list[Violation]:
    model = nn.Linear(2, 2)
    guards = watch(model, torch.optim.SGD(model.parameters(), lr=0.1), policy="observe")
    guards.split(train=train, validation=validation)
    return [v for v in guards.finish().violations if v.slug == "split"]


def points(count: int = 400, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def stream(length: int, vocabulary: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(vocabulary, size=length)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, TensorDataset, lambda x: DataLoader(TensorDataset(x), 8), lambda x: list(x)]
)
def test_rows_of_validation_in_training(wrap: Any) -> None:
    x = points()
    (leak,) = found(wrap(x), wrap(x[300:]))
    assert (leak.id, leak.severity) == ("RUN-37", "FAIL") and "100.0% of the validation set" in leak.message
    (leak,) = found(wrap(x[:310]), wrap(x[300:]))
    assert "10 of 100 samples" in leak.message and "first at 0, 1, 2, 3" in leak.evidence
    assert not found(wrap(x[:300]), wrap(x[300:]))


def test_labels_do_not_hide_a_leak() -> None:
    x = points()
    (leak,) = found(TensorDataset(x, torch.zeros(400)), TensorDataset(x[:50], torch.ones(50)))
    assert leak.severity == "FAIL"


def test_parts_of_one_data_set_are_compared_by_index() -> None:
    data = TensorDataset(torch.zeros(100, 3))  # all samples are equal: indices alone can tell
    assert not found(*random_split(data, [80, 20]))
    first, second = random_split(data, [80, 20])
    first.indices = [*first.indices, second.indices[3]]
    (leak,) = found(first, second)
    assert "1 of 20 indices" in leak.message


@pytest.mark.parametrize("leaked", [1.0, 0.05])
def test_a_stretch_of_a_stream(leaked: float) -> None:
    train, validation = stream(40_000), stream(10_000, seed=1)
    part = int(leaked * len(validation))
    train[7_003 : 7_003 + part] = validation[:part]  # not where runs would be cut
    (leak,) = found(train, torch.from_numpy(validation))
    assert leak.severity == "FAIL" and "runs of 32 tokens" in leak.message
    assert not found(stream(40_000), validation)


def test_the_end_of_a_text_that_stays_in_training() -> None:
    text = "".join(chr(97 + n % 26) for n in stream(20_000))
    (leak,) = found(text, text[-2_000:])
    assert leak.severity == "FAIL" and leak.margin is not None and leak.margin < -0.9
    assert not found(text[:-2_000], text[-2_000:])


def test_natural_repeats_are_no_leak() -> None:
    """A licence before each document: a part of every set is in every other."""
    header, draw = stream(96, seed=5), np.random.default_rng(2)
    documents = [np.concatenate([header, draw.integers(500, size=4_000)]) for _ in range(30)]
    assert not found(np.concatenate(documents[:24]), np.concatenate(documents[24:]))
    measured = overlap.of_tokens(np.concatenate(documents[:24]), np.concatenate(documents[24:]))
    assert 0 < measured.share < 0.05 and abs(measured.share - measured.natural) < 0.01


def test_samples_that_occur_twice_by_nature_are_a_warning() -> None:
    x = points(300).repeat(2, 1)[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    (leak,) = found(x[:480], x[480:])
    assert leak.severity == "WARN" and "repeats" in leak.evidence


def test_windows_that_overlap_are_a_warning_and_blocks_that_do_not_are_none() -> None:
    tokens = torch.from_numpy(stream(2_000))
    rows = tokens.unfold(0, 16, 4)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    (leak,) = found(rows[order[100:]], rows[order[:100]])
    assert leak.severity == "WARN" and "runs of 8 tokens" in leak.message
    assert not found(tokens[:1_600].unfold(0, 16, 4), tokens[1_600:].unfold(0, 16, 4))


def test_ids_are_not_taken_for_tokens() -> None:
    ids = torch.randperm(256, generator=torch.Generator().manual_seed(0)) // 2  # each original twice
    (leak,) = found(ids[:192], ids[192:])
    assert leak.severity == "WARN" and "numbers" in leak.message
    assert not found(ids.sort().values[:192], ids.sort().values[192:])


def test_background_is_not_what_two_pictures_share() -> None:
    draw = np.random.default_rng(0)
    pictures = np.zeros((200, 784), dtype=np.uint8)
    for picture in pictures:
        start = draw.integers(100, 500)
        picture[start : start + 200] = draw.integers(256, size=200)
    assert not found(pictures[:160], pictures[160:])


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        found(iter([1]), iter([2]))


class Failing(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise OSError("the disk is gone")


def test_a_data_set_that_fails_takes_the_check_off_duty_and_not_the_run() -> None:
    model = nn.Linear(2, 2)
    guards = watch(model, torch.optim.SGD(model.parameters(), lr=0.1), policy="observe")
    guards.split(train=Failing(), validation=Failing())
    assert "OSError" in guards.finish().not_checked["split"]


def test_the_measure_is_exact_on_a_small_example() -> None:
    measured = overlap.of_samples([b"a", b"b", b"b", b"c"], [b"b", b"x", b"c"])
    assert (measured.shared, measured.looked_at, measured.natural, measured.where) == (2, 3, 0.5, (0, 2))
    tokens = overlap.of_tokens(list(range(100)), list(range(50, 90)), length=10)
    assert (tokens.shared, tokens.looked_at, tokens.natural) == (4, 4, 0.0)
