"""How much of one data set is in another: samples by their bytes, text and tokens by runs of neighbours.

Natural data repeat themselves: what counts is how much more of the validation set is in the training set than the training
set repeats of itself. Both shares are measured the same way. Arrays are NumPy's; a hash is 64 bits, so that two different
runs are taken for one with a probability of about 2^-64 for each pair.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RUN_LENGTH, SHORTEST = 32, 8
"""Neighbouring tokens that are compared as one: rare to repeat by chance, short enough to find a copied sentence. Of short
rows half a row is compared, but no fewer than the second number."""
MOST_TOKENS = 5_000_000
"""Of longer streams the first so many are compared; the evidence says so."""
BLOCKS = 10
"""Parts of the training set, each of which is looked for in the others: the validation set is to be like one of them."""
STANDARD_ERRORS = 6.0
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""An odd multiplier with bits spread evenly, 2^64 / phi."""


@dataclass(frozen=True)
class Overlap:
    """shared of `looked_at` units of the validation set are in the training set; `natural`: the share that the training set
    repeats of itself, `noise` how far a share of so few units may be above it by chance. where: the first places.
    guessed: whether it had to be guessed what the numbers are."""

    unit: str
    shared: int
    looked_at: int
    natural: float
    where: tuple[int, ...]
    noise: float = 0.0
    guessed: bool = False

    @property
    def share(self) -> float:
        """The share of the validation set that is in the training set."""
        return self.shared / self.looked_at if self.looked_at else 0.0

    @property
    def excess(self) -> float:
        """How far that share is above what the training set repeats of itself, and above chance."""
        return self.share - self.natural - self.noise


def of_samples(train: Iterable[bytes], validation: Iterable[bytes], unit: str = "samples") -> Overlap:
    """The overlap of whole samples, given as bytes. natural: the share of training samples that are there more than once."""
    ours, theirs = Counter(_digest(x) for x in train), [_digest(x) for x in validation]
    shared = [place for place, x in enumerate(theirs) if x in ours]
    total, repeated = ours.total(), sum(n for n in ours.values() if n > 1)
    natural = repeated / total if total else 0.0
    noise = _noise(len(shared), len(theirs), repeated, total) if repeated else 0.0
    return Overlap(unit, len(shared), len(theirs), natural, tuple(shared[:4]), noise)


def of_tokens(
    train: Sequence[int] | np.ndarray, validation: Sequence[int] | np.ndarray, length: int = RUN_LENGTH
) -> Overlap:
    """The overlap of runs of `length` tokens: those of the validation set side by side, against all of the training set.

    Streams (N,) or rows (N, T); in short rows runs are shorter. natural: of ten parts of the training set, the share of the
    one that is most in the others: a validation set that is like any of them has no more.
    """
    ours, theirs = _rows(train), _rows(validation)
    widths = [rows.shape[1] for rows in (ours, theirs) if len(rows) > 1]
    if widths and min(widths) < 2 * length:
        length = max(SHORTEST, min(widths) // 2)
    known, block = _hashes(ours, length, 1)
    looked_for, _ = _hashes(theirs, length, length)
    telling = _varied(theirs, length)
    shared = np.isin(looked_for, known)[telling]
    natural, counted = _natural(known, block, length)
    repeated = round(natural * counted)
    noise = _noise(int(shared.sum()), len(shared), repeated, counted) if repeated else 0.0
    per_row = max(1, theirs.shape[1] // length)
    places = np.flatnonzero(telling)[np.flatnonzero(shared)[:4]]
    where = places * length if len(theirs) == 1 else places // per_row
    unit = f"runs of {length} tokens"
    return Overlap(unit, int(shared.sum()), len(shared), natural, tuple(int(p) for p in where), noise)


def looks_like_ids(numbers: np.ndarray) -> bool:
    """Whether whole numbers in one row are rather names of samples than tokens: each there a few times at most."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) < 16:
        return False
    _, counts = np.unique(numbers[:MOST_TOKENS], return_counts=True)
    return bool(counts.max() <= 8 and 8 * len(counts) >= len(numbers[:MOST_TOKENS]))


def _digest(sample: bytes) -> bytes:
    return hashlib.blake2b(sample, digest_size=16).digest()


def _noise(a: int, of_a: int, b: int, of_b: int) -> float:
    """STANDARD_ERRORS of the difference of two shares, pooled; 0 where there is nothing to compare."""
    if not of_a or not of_b:
        return 0.0
    pooled = (a + b) / (of_a + of_b)
    return STANDARD_ERRORS * math.sqrt(pooled * (1 - pooled) * (1 / of_a + 1 / of_b))


def _rows(data: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens as rows, a stream as one."""
    array = np.asarray(data)
    if array.ndim == 1:
        return array[None, :MOST_TOKENS]
    return array[: max(1, MOST_TOKENS // max(1, array.shape[1]))]


def _hashes(rows: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """A polynomial hash modulo 2^64 of every run in a row that starts at a multiple of `stride`, and each one's block."""
    count = (rows.shape[1] - length) // stride + 1
    if count <= 0 or not len(rows):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    mixed = (rows.astype(np.int64).view(np.uint64) + np.uint64(1)) * _BASE
    mixed ^= mixed >> np.uint64(29)
    result = np.zeros((len(rows), count), dtype=np.uint64)
    for offset in range(length):
        result = result * _BASE + mixed[:, offset : offset + (count - 1) * stride + 1 : stride]
    places = np.arange(len(rows) * count)
    return result.reshape(-1), places * BLOCKS // len(places)


def _varied(rows: np.ndarray, length: int) -> np.ndarray:
    """Of the runs side by side, which have enough different tokens to tell anything: not blanks, padding or background."""
    count = rows.shape[1] // length
    beside = np.sort(rows[:, : count * length].reshape(-1, length), axis=1)
    return (beside[:, 1:] != beside[:, :-1]).sum(axis=1) + 1 >= length // 4  # type: ignore[no-any-return]


def _natural(known: np.ndarray, block: np.ndarray, length: int) -> tuple[float, int]:
    """The largest share of a block's runs, side by side, that are in another block; and how many runs it has."""
    if not len(known):
        return 0.0, 0
    order = np.argsort(known, kind="stable")
    hashes, blocks = known[order], block[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    lowest, highest = np.minimum.reduceat(blocks, starts), np.maximum.reduceat(blocks, starts)
    group = np.cumsum(np.r_[True, hashes[1:] != hashes[:-1]]) - 1
    elsewhere = np.empty(len(known), dtype=bool)
    elsewhere[order] = (lowest != highest)[group]
    beside, of = elsewhere[::length], block[::length]
    counts = np.bincount(of, minlength=BLOCKS)
    shares = np.bincount(of, weights=beside, minlength=BLOCKS) / np.maximum(counts, 1)
    most = int(np.argmax(shares))
    return float(shares[most]), int(counts[most])
