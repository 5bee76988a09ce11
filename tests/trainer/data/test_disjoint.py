"""The overlap is counted exactly, and texts that are not disjoint are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.core.errors import DataError
from karat.trainer.data import disjoint
from karat.trainer.data.disjoint import Tokens, check_disjoint, shared_windows, window_hashes


def tokens(text: bytes) -> Tokens:
    return np.frombuffer(text, np.uint8)


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(32, 127, size, np.uint8).tobytes()


def brute_force(train: bytes, validation: bytes, window: int) -> tuple[int, int]:
    """(shared windows, covered bytes) by the definition."""
    starts = [i for i in range(len(validation) - window + 1) if validation[i : i + window] in train]
    return len(starts), len({i + k for i in starts for k in range(window)})


few_letters = st.binary(max_size=60).map(lambda text: bytes(byte % 3 for byte in text))


@settings(max_examples=150, deadline=None)
@given(train=few_letters, validation=few_letters, window=st.integers(1, 9))
def test_the_overlap_is_the_brute_force_count(train: bytes, validation: bytes, window: int) -> None:
    overlap = shared_windows(tokens(train), tokens(validation), window=window)
    shared, covered = brute_force(train, validation, window)
    assert (overlap.shared_windows, overlap.covered_bytes) == (shared, covered)
    assert overlap.windows == max(0, len(validation) - window + 1)
    assert overlap.share == (covered / len(validation) if validation else 0.0)


@settings(max_examples=60, deadline=None)
@given(train=few_letters, validation=few_letters, window=st.integers(1, 5))
def test_a_hash_that_collides_changes_nothing(train: bytes, validation: bytes, window: int) -> None:
    def weak(data: Tokens, width: int) -> disjoint.Hashes:
        return window_hashes(data, width) & np.uint64(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disjoint, "window_hashes", weak)
        overlap = shared_windows(tokens(train), tokens(validation), window=window)
    assert (overlap.shared_windows, overlap.covered_bytes) == brute_force(train, validation, window)


def test_a_window_across_two_chunks_of_train_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disjoint, "CHUNK", 7)
    monkeypatch.setattr(disjoint, "PAIRS_AT_ONCE", 3)
    train, validation = noise(0, 100), noise(1, 40)
    for start in range(80):
        overlap = shared_windows(tokens(train), tokens(validation + train[start : start + 20]), window=10)
        assert (overlap.shared_windows, overlap.covered_bytes) == (11, 20)


@given(data=st.binary(min_size=1, max_size=80), window=st.integers(1, 80))
def test_a_hash_depends_on_its_window_alone(data: bytes, window: int) -> None:
    hashes = window_hashes(tokens(data), window)
    assert len(hashes) == max(0, len(data) - window + 1)
    for i, value in enumerate(hashes):
        assert window_hashes(tokens(data[i : i + window]), window)[0] == value
    distinct = {data[i : i + window] for i in range(len(hashes))}
    assert len(np.unique(hashes)) == len(distinct)


def test_the_order_of_bytes_matters_to_a_hash() -> None:
    for text in (b"ab", b"abc", b"abcdef"):
        assert window_hashes(tokens(text), len(text))[0] != window_hashes(tokens(text[::-1]), len(text))[0]


def test_disjoint_noise_passes_with_overlap_zero() -> None:
    overlap = check_disjoint(tokens(noise(0, 5000)), tokens(noise(1, 500)))
    assert overlap.share == overlap.window_share == 0.0


def test_validation_inside_training_is_refused() -> None:
    train = noise(0, 5000)
    with pytest.raises(DataError, match=r"the validation text .*stands whole in the training text"):
        check_disjoint(tokens(train), tokens(train[1000:1030]))


def test_training_inside_validation_is_refused() -> None:
    text = noise(0, 5000)
    with pytest.raises(DataError, match=r"the training text .*stands whole in the validation text"):
        check_disjoint(tokens(text[2000:4000]), tokens(text))


def test_half_of_the_windows_is_too_much_and_a_little_less_is_not() -> None:
    train = noise(0, 5000)
    # 1000 bytes of which k stand in train: 937 windows, k - 63 of them shared; half is 468.5.
    with pytest.raises(DataError, match=r"50\.1% of the 937 validation windows"):
        check_disjoint(tokens(train), tokens(train[:532] + noise(1, 468)))
    accepted = check_disjoint(tokens(train), tokens(train[:531] + noise(1, 469)))
    assert accepted.shared_windows == 468


def test_a_window_of_no_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="window of 0 bytes"):
        shared_windows(tokens(b"abc"), tokens(b"abc"), window=0)
