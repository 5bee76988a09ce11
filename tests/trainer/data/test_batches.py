"""A batch is a function of (seed, step); an epoch uses each window once; validation scores each byte once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.core.errors import DataError
from karat.trainer.data.batches import Batches, epoch_starts, validation_windows, windows_per_epoch
from karat.trainer.data.disjoint import Tokens

ASCENDING: Tokens = np.arange(251, dtype=np.uint8)  # distinct bytes: a value names its position


def predicted(batches: Batches, first: int, last: int) -> list[tuple[int, ...]]:
    """The targets of the windows first <= g < last, in order, from as many steps as that takes."""
    size = batches.batch_size
    rows = [tuple(row) for step in range(-(-last // size)) for row in batches.batch_at(step)[1].tolist()]
    return rows[first:last]


shapes = st.tuples(st.integers(2, 251), st.integers(1, 40)).filter(lambda shape: shape[0] > shape[1])


@settings(max_examples=60, deadline=None)
@given(shape=shapes, batch_size=st.integers(1, 20), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2))
def test_each_epoch_uses_each_window_once(shape: tuple[int, int], batch_size: int, seed: int, epoch: int) -> None:
    length, context = shape
    batches = Batches(ASCENDING[:length], context, batch_size, seed)
    count = batches.windows_per_epoch
    targets = predicted(batches, epoch * count, (epoch + 1) * count)
    uses = Counter(byte for window in targets for byte in window)
    assert len(targets) == count
    assert set(uses.values()) == {1}  # no byte is a target twice in an epoch
    assert len(uses) == count * context
    assert max(uses) - min(uses) == count * context - 1  # the windows lie end to end: no gap
    assert len(uses) > length - 2 * context  # and leave out less than two windows


@settings(max_examples=60, deadline=None)
@given(shape=shapes, batch_size=st.integers(1, 9), seed=st.integers(0, 99), steps=st.permutations(range(6)))
def test_a_batch_depends_on_the_step_and_not_on_what_was_asked_before(
    shape: tuple[int, int], batch_size: int, seed: int, steps: list[int]
) -> None:
    length, context = shape
    text = ASCENDING[:length]
    in_order = [Batches(text, context, batch_size, seed).batch_at(step) for step in range(6)]
    resumed = Batches(text.copy(), context, batch_size, seed)
    for step in steps:
        epoch_starts.cache_clear()
        inputs, targets = resumed.batch_at(step)
        assert np.array_equal(inputs, in_order[step][0])
        assert np.array_equal(targets, in_order[step][1])


def test_a_batch_has_the_promised_shape_and_targets_one_byte_on() -> None:
    inputs, targets = Batches(ASCENDING, 8, 4, seed=0).batch_at(3)
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)
    assert inputs.flags.writeable and inputs.flags.c_contiguous and targets.flags.c_contiguous


def test_order_and_phase_are_fresh_in_each_epoch_and_differ_between_seeds() -> None:
    epochs = [epoch_starts(5000, 16, 0, epoch) for epoch in range(12)]
    assert len({tuple(starts) for starts in epochs}) == 12
    assert len({int(starts.min()) for starts in epochs}) > 6  # phases, of 16
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))
    assert not np.array_equal(epochs[0], epoch_starts(5000, 16, 1, 0))


def test_every_phase_occurs_and_each_one_fits() -> None:
    smallest = {int(epoch_starts(100, 7, 3, epoch).min()) for epoch in range(200)}
    assert smallest == set(range(100 - 13 * 7))
    assert max(int(epoch_starts(100, 7, 3, epoch).max()) for epoch in range(200)) == 100 - 7 - 1


def test_the_stream_never_changes() -> None:
    """Pinned: a run that is resumed on another NumPy or machine reads the same bytes."""
    assert epoch_starts(50, 8, 7, 2).tolist() == [29, 5, 37, 21, 13]


def test_the_cached_epoch_cannot_be_altered() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_starts(100, 7, 3, 0)[0] = 1


@given(length=st.integers(2, 300), context=st.integers(1, 60))
def test_the_count_of_windows_fits_from_every_phase(length: int, context: int) -> None:
    count = windows_per_epoch(length, context)
    assert count == 1 or count * context + context <= length


@settings(max_examples=80, deadline=None)
@given(length=st.integers(2, 251), context=st.integers(1, 300), batch_size=st.integers(1, 9))
def test_validation_predicts_every_byte_but_the_first_once_and_in_order(
    length: int, context: int, batch_size: int
) -> None:
    seen: list[int] = []
    for inputs, targets in validation_windows(ASCENDING[:length], context, batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size and inputs.shape[1] <= context
        assert np.array_equal(targets, inputs + 1)
        seen += targets.ravel().tolist()
    assert seen == list(range(1, length))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 12), context=st.integers(1, 15), batch_size=st.integers(1, 9), epoch=st.integers(0, 2),
    wide=st.booleans(),
)  # fmt: skip
def test_sequences_are_used_whole_and_each_once_an_epoch(
    count: int, context: int, batch_size: int, epoch: int, wide: bool
) -> None:
    offset, dtype = (1000, np.uint16) if wide else (0, np.uint8)
    text = (np.arange(count * (context + 1)) + offset).astype(dtype)
    batches = Batches(text, context, batch_size, seed=3, rows=True)
    assert batches.windows_per_epoch == count
    targets = predicted(batches, epoch * count, (epoch + 1) * count)
    rows = [tuple(row[1:]) for row in text.reshape(count, context + 1).tolist()]
    assert sorted(targets) == rows  # the first token of each is never a target, no window crosses two
    held = [row for _, t in validation_windows(text, context, batch_size, rows=True) for row in map(tuple, t.tolist())]
    assert held == rows


def test_sequences_that_are_cut_short_are_refused() -> None:
    for make in (
        lambda: Batches(ASCENDING[:10], 3, 1, 0, rows=True),
        lambda: validation_windows(ASCENDING[:9], 3, 1, True),
    ):
        with pytest.raises(DataError, match="tokens in sequences of 4"):
            make()


@pytest.mark.parametrize(
    ("context", "batch_size", "seed", "length", "message"),
    [
        (0, 1, 0, 9, "context 0 and batch size 1"),
        (4, 0, 0, 9, "context 4 and batch size 0"),
        (9, 1, 0, 9, "a text of 9 tokens with context 9\n.*at least 10 tokens"),
        (4, 1, -1, 9, "seed -1"),
        (4, 1, 2**64, 9, "seed 18446744073709551616"),
    ],
)
def test_impossible_batches_are_refused(context: int, batch_size: int, seed: int, length: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(ASCENDING[:length], context, batch_size, seed)


def test_the_shortest_text_is_one_window() -> None:
    inputs, targets = Batches(ASCENDING[:10], 9, 2, seed=5).batch_at(4)
    assert inputs.tolist() == [list(range(9))] * 2
    assert targets.tolist() == [list(range(1, 10))] * 2


def test_other_misuse_is_refused() -> None:
    with pytest.raises(DataError, match="step -1"):
        Batches(ASCENDING, 4, 1, 0).batch_at(-1)
    with pytest.raises(DataError, match="type int64"):
        Batches(np.arange(9), 4, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a text of 1 tokens"):
        validation_windows(ASCENDING[:1], 4, 1)
