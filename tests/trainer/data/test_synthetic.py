"""The synthetic corpus is what it says, its floor is what a perfect model pays, and its overlap is told as it is."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from karat.core.errors import DataError
from karat.trainer.data.batches import Batches, validation_windows
from karat.trainer.data.corpus import load_corpus
from karat.trainer.data.synthetic import HELD_OUT, KINDS, TRAIN, floor_nats, is_synthetic, load_synthetic, sequences

V, T = 50, 12
DRAWN = load_synthetic("synthetic", V, T)


def test_sequences_are_the_three_kinds_in_turn() -> None:
    rows = DRAWN.train.astype(int)
    assert DRAWN.train.shape == (TRAIN, T + 1) and DRAWN.validation.shape == (HELD_OUT, T + 1)
    assert DRAWN.train.dtype == np.uint16
    for i in (0, 3, 147, 150, 15_996):
        assert rows[i].tolist() == [i % (V - 1) + 1] * (T + 1)
    for i in (1, 4, 49, 15_997):
        assert rows[i].tolist() == [(i + j) % V for j in range(T + 1)]
    random = rows[2::3]
    counts = np.bincount(random.ravel(), minlength=V)
    expected = random.size / V
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 110  # 49 degrees of freedom: above that once in 10^6
    assert len({row.tobytes() for row in random}) == len(random)


def test_the_draw_never_changes() -> None:
    """Pinned: the same tokens on another machine, another NumPy."""
    assert sequences(range(2, 9, 3), 100, 5, 42).tolist() == [
        [60, 55, 41, 86, 25, 60],
        [14, 44, 46, 78, 91, 77],
        [10, 72, 25, 55, 2, 15],
    ]


def test_a_seed_decides_the_random_third_and_nothing_else() -> None:
    again, seven = load_synthetic("synthetic:42", V, T), load_synthetic("synthetic:7", V, T)
    assert np.array_equal(again.train, DRAWN.train) and np.array_equal(again.validation, DRAWN.validation)
    same = (seven.train == DRAWN.train).all(axis=1)
    assert same[0::3].all() and same[1::3].all() and not same[2::3].any()
    assert seven.manifest.digest != DRAWN.manifest.digest


@pytest.mark.parametrize(
    "source",
    ["synthetic:", "synthetic:x", "synthetic:-1", "synthetic:18446744073709551616", "synthetic:٣", "synthetic: 1"],
)
def test_a_seed_that_is_none_is_refused(source: str) -> None:
    assert is_synthetic(source)
    with pytest.raises(DataError, match="no corpus is named"):
        load_synthetic(source, V, T)


def test_the_floor_of_the_source_is_computed() -> None:
    assert round(floor_nats(4096, 256, 5333 / 16_000), 3) == 2.777
    assert round(load_synthetic("synthetic", 4096, 256).floor, 3) == 2.777
    assert DRAWN.floor == pytest.approx(math.log(V) / 3 + math.log(3) / T, abs=1e-15)


def perfect(row: list[int], vocab: int) -> list[float]:
    """-ln p of each target by a model that knows the three kinds: undecided at the first target, then it has seen."""
    first, second = row[0], row[1]
    p = (second == first) / 3 + (second == (first + 1) % vocab) / 3 + 1 / (3 * vocab)
    step = 0 if second == first else 1 if second == (first + 1) % vocab else None
    later = []
    for before, after in itertools.pairwise(row[1:]):
        follows = step is not None and after == (before + step) % vocab
        later.append(0.0 if follows else math.log(vocab))
        step = step if follows else None
    return [-math.log(p), *later]


def test_a_perfect_model_pays_the_floor() -> None:
    """Every target counts, the first of a sequence too: without the ln 3 / T that it costs the two would differ."""
    vocab, context = 4096, 16
    drawn = load_synthetic("synthetic", vocab, context)
    losses = [np.mean(perfect(row, vocab)) for row in drawn.validation.tolist()]
    assert float(np.mean(losses)) == pytest.approx(drawn.floor, abs=1e-3)
    assert drawn.floor - math.log(vocab) / 3 == pytest.approx(math.log(3) / context)  # 0.069, far beyond 1e-3
    by_kind = [float(np.mean(losses[kind::3])) for kind in range(3)]
    assert by_kind[0] == pytest.approx(math.log(3) / context, abs=1e-3)
    assert by_kind[1] == pytest.approx(math.log(3) / context, abs=1e-3)
    assert by_kind[2] == pytest.approx(math.log(vocab) + math.log(3) / context, abs=1e-2)


@pytest.mark.parametrize(("vocab", "recurring"), [(V, (320, 320)), (60_000, (0, 0))])
def test_the_overlap_is_counted_and_told(vocab: int, recurring: tuple[int, int]) -> None:
    drawn = load_synthetic("synthetic", vocab, T)
    train = {tuple(row) for row in drawn.train.tolist()}
    shared = [sum(tuple(row) in train for row in drawn.validation[kind::3].tolist()) for kind in range(3)]
    assert shared == [*recurring, 0]
    rule, overlap = drawn.manifest.rule, drawn.manifest.overlap
    each = HELD_OUT // 3
    assert f"{shared[0]} of {each} constant, {shared[1]} of {each} counting, 0 of {each} random also stand" in rule
    assert overlap.share == sum(shared) / HELD_OUT
    assert (overlap.windows, overlap.shared_windows) == (HELD_OUT, sum(shared))


def test_random_sequences_that_must_recur_are_refused() -> None:
    with pytest.raises(DataError, match=r"\d+ of 320 random held-out sequences also stand in training") as caught:
        load_synthetic("synthetic", 2, 4)
    assert "larger model.vocab or model.context" in caught.value.next_step


@pytest.mark.parametrize(("vocab", "context"), [(1, 8), (65_537, 8), (50, 0)])
def test_impossible_shapes_are_refused(vocab: int, context: int) -> None:
    with pytest.raises(DataError, match="for synthetic data"):
        load_synthetic("synthetic", vocab, context)


def test_the_corpus_is_its_sequences_and_each_batch_row_is_one_of_them() -> None:
    corpus = load_corpus("synthetic", context=T, vocab=V)
    assert corpus.synthetic is not None and corpus.unit == "bits per token" and corpus.bytes_per_token == 1.0
    assert corpus.train.tobytes() == DRAWN.train.tobytes()
    assert not corpus.train.flags.writeable
    batches = Batches(corpus.train, T, 33, seed=1, rows=True)
    assert batches.windows_per_epoch == TRAIN
    known = {row.tobytes(): i for i, row in enumerate(DRAWN.train[2::3])}
    inputs, targets = batches.batch_at(2)
    whole = np.concatenate([inputs, targets[:, -1:]], axis=1).astype(np.uint16)
    steps = (whole.astype(int)[:, 1:] - whole[:, :-1]) % V
    for row, step in zip(whole, steps, strict=True):
        assert set(step) <= {0} or set(step) <= {1} or row.tobytes() in known
    (held, held_targets), *_ = validation_windows(corpus.validation, T, 4, rows=True)
    assert np.array_equal(held, DRAWN.validation[:4, :-1]) and np.array_equal(held_targets, DRAWN.validation[:4, 1:])


def test_it_takes_no_tokenizer_and_no_validation_text() -> None:
    with pytest.raises(DataError, match="synthetic data with tokens=bpe"):
        load_corpus("synthetic", context=T, vocab=300, tokens="bpe")
    with pytest.raises(DataError, match="synthetic data with a validation text"):
        load_corpus("synthetic", context=T, vocab=300, validation=Path("held.txt"))


def test_a_folder_of_that_name_can_still_be_named() -> None:
    assert not is_synthetic("./synthetic") and not is_synthetic("synthetics")
    assert KINDS == ("constant", "counting", "random")
