"""How much of one data set is in another: samples by their bytes, text and tokens by runs of neighbours.

Natural data repeat themselves: what counts is how much more of the validation set is in the training set than the training
set repeats itself. Both shares are measured the same way. Arrays are NumPy's; a hash is 64 bits, so that two different
runs are taken for one with a probability of about 2^-64 for each pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RUN_LENGTH = 32
"""Neighbouring tokens that are compared as one: rare to repeat by chance, short enough to find a copied sentence."""
Tokens = Sequence[int] | np.ndarray
MOST_TOKENS = 5_000_000
"""Of longer streams the first so many are compared; the evidence says so."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""An odd multiplier with bits spread evenly, 2^64 / phi."""


@dataclass(frozen=True)
class Overlap:
    """shared of `looked_at` units of the validation set are in the training set; `natural`: the share that the training set
    repeats of itself. where: the first places."""

    unit: str
    shared: int
    looked_at: int
    natural: float
    where: tuple[int, ...]

    @property
    def share(self) -> float:
        """The share of the validation set that is in the training set."""
        return self.shared / self.looked_at if self.looked_at else 0.0

    @property
    def excess(self) -> float:
        """How far that share is above what the training set repeats of itself."""
        return self.share - self.natural


def of_samples(train: Iterable[bytes], validation: Iterable[bytes]) -> Overlap:
    """The overlap of whole samples, given as bytes."""
    ours, theirs = [_digest(x) for x in train], [_digest(x) for x in validation]
    known = set(ours)
    shared = [place for place, x in enumerate(theirs) if x in known]
    natural = 1 - len(known) / len(ours) if ours else 0.0
    return Overlap("samples", len(shared), len(theirs), natural, tuple(shared[:4]))


def of_tokens(train: Tokens, validation: Tokens, length: int = RUN_LENGTH) -> Overlap:
    """The overlap of runs of `length` tokens: those of the validation set side by side, against all of the training set.

    natural: of the second half of the training set, side by side, the share that is in its first half.
    """
    ours, theirs = np.asarray(train).reshape(-1)[:MOST_TOKENS], np.asarray(validation).reshape(-1)[:MOST_TOKENS]
    half = len(ours) // 2
    shared = _found(theirs, ours, length)
    repeated = _found(ours[half:], ours[:half], length)
    places = np.flatnonzero(shared)[:4] * length
    natural = float(repeated.mean()) if len(repeated) else 0.0
    return Overlap(f"runs of {length} tokens", int(shared.sum()), len(shared), natural, tuple(int(p) for p in places))


def _digest(sample: bytes) -> bytes:
    return hashlib.blake2b(sample, digest_size=16).digest()


def _found(looked_for: np.ndarray, among: np.ndarray, length: int) -> np.ndarray:
    """Of the runs side by side in one stream, which occur anywhere in another."""
    return np.isin(_hashes(looked_for, length, length), _hashes(among, length, 1))


def _hashes(stream: np.ndarray, length: int, stride: int) -> np.ndarray:
    """A polynomial hash modulo 2^64 of every run that starts at a multiple of `stride`."""
    count = (len(stream) - length) // stride + 1
    result = np.zeros(max(count, 0), dtype=np.uint64)
    if count <= 0:
        return result
    mixed = (stream.astype(np.int64).view(np.uint64) + np.uint64(1)) * _BASE
    mixed ^= mixed >> np.uint64(29)
    for offset in range(length):
        result = result * _BASE + mixed[offset : offset + (count - 1) * stride + 1 : stride]
    return result
