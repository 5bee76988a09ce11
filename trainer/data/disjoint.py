"""Training and validation text are disjoint, and how much they still share is a number that was measured.

Two texts of the same kind always share something: a licence header, an import block, a common phrase. So the
overlap is measured (`shared_windows`) and written into the manifest; `check_disjoint` refuses only what would
make a validation score meaningless: one text inside the other, or half of the validation windows in training.
Hash hits are compared byte for byte, so a shared window that is reported is shared.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from karat.core.errors import DataError

Tokens = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

WINDOW = 64  # bytes; about one line of source code
LARGEST_WINDOW_SHARE = 0.5  # from here on validation measures memory of the training text
CHUNK = 1 << 20  # training windows hashed at a time: 8 MiB of uint64
PAIRS_AT_ONCE = 1 << 16  # windows compared at a time: 4 MiB a side at 64 bytes
FILTER_BITS = 24  # 16 MiB of flags; 1 M validation windows set 6 % of them

_MASK = (1 << 64) - 1
_BASE = 0x9E3779B97F4A7C15  # 2^64 / phi, odd, so that no power of it vanishes modulo 2^64
_BYTE_VALUES: Hashes = np.random.Philox(key=_BASE).random_raw(256).astype(np.uint64)


@dataclass(frozen=True)
class Overlap:
    """How much of the validation text also stands in training; `share` is covered / validation bytes.

    window: bytes per window. windows: how many the validation text has. shared_windows: how many of them
    occur anywhere in training. covered_bytes: validation positions inside at least one shared window.
    """

    window: int
    windows: int
    shared_windows: int
    covered_bytes: int
    validation_bytes: int
    share: float

    @property
    def window_share(self) -> float:
        """shared_windows / windows, in [0, 1]; 0 where the validation text is shorter than a window."""
        return self.shared_windows / self.windows if self.windows else 0.0


def window_hashes(data: Tokens, window: int) -> Hashes:
    """hash[i] depends on data[i : i + window] alone: a polynomial hash modulo 2^64 (Karp and Rabin 1987).

    data: (n,) uint8. Returns (n - window + 1,) uint64, empty where n < window. log2(window) vector passes:
    the hash of 2k bytes is hash(first k) * base^k + hash(next k), and `window` is the sum of its powers of
    two.
    """
    count = len(data) - window + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    block: Hashes = _BYTE_VALUES[data]
    done, width = 0, 1
    while True:
        factor = np.uint64(pow(_BASE, width, _MASK + 1))
        if window & width:
            total = total * factor + block[done : done + count]
            done += width
        if done == window:
            return total
        block = block[:-width] * factor + block[width:]
        width *= 2


def shared_windows(train: Tokens, validation: Tokens, *, window: int = WINDOW) -> Overlap:
    """Counts the validation windows that occur anywhere in train, exactly: hash hits are compared in bytes.

    train: (n,) uint8. validation: (m,) uint8. window: bytes, >= 1 (DataError otherwise). About 20 bytes of
    memory per validation byte plus 60 MiB, whatever the size of train.
    """
    if window < 1:
        raise DataError(f"an overlap window of {window} bytes", required="at least 1 byte")
    windows = max(0, len(validation) - window + 1)
    starts = _shared_starts(train, validation, window)
    steps = np.zeros(len(validation) + 1, np.int32)
    steps[starts] += 1
    steps[starts + window] -= 1
    covered = int(np.count_nonzero(np.cumsum(steps)))
    share = covered / len(validation) if len(validation) else 0.0
    return Overlap(window, windows, len(starts), covered, len(validation), share)


def check_disjoint(train: Tokens, validation: Tokens) -> Overlap:
    """The overlap of two disjoint texts; DataError where one contains the other or shares half its windows.

    train: (n,) uint8. validation: (m,) uint8; both non-empty.
    """
    required = f"disjoint texts: neither inside the other, under {LARGEST_WINDOW_SHARE:.0%} of windows shared"
    advice = (
        "give a validation text that is not in the training text; "
        "a text that repeats itself cannot be split, so remove its copies or use another"
    )
    training_text, validation_text = train.tobytes(), validation.tobytes()
    if validation_text in training_text:
        seen = f"the validation text ({len(validation):,} bytes) stands whole in the training text"
        raise DataError(seen, required=required, next_step=advice)
    if training_text in validation_text:
        seen = f"the training text ({len(train):,} bytes) stands whole in the validation text"
        raise DataError(seen, required=required, next_step=advice)
    overlap = shared_windows(train, validation)
    if overlap.window_share >= LARGEST_WINDOW_SHARE:
        seen = (
            f"{overlap.window_share:.1%} of the {overlap.windows:,} validation windows "
            f"of {overlap.window} bytes also stand in the training text"
        )
        raise DataError(seen, required=required, next_step=advice)
    return overlap


def _shared_starts(train: Tokens, validation: Tokens, window: int) -> Positions:
    """Ascending starts of the validation windows that occur in train. Shape (shared,)."""
    hashes = window_hashes(validation, window)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    flags = np.zeros(1 << FILTER_BITS, bool)
    flags[_flag(hashes)] = True
    found = np.zeros(len(hashes), bool)
    for start in range(0, len(train) - window + 1, CHUNK):
        chunk = train[start : start + CHUNK + window - 1]
        for here, there in _hash_hits(window_hashes(chunk, window), hashes, flags, found):
            found[here] |= _same_bytes(validation, order[here], chunk, there, window)
    return np.sort(order[found])


def _flag(hashes: Hashes) -> Positions:
    """Index into the filter: the high bits, which depend on all lower ones."""
    shift = np.uint64(64 - FILTER_BITS)
    return ((hashes * np.uint64(_BASE)) >> shift).astype(np.int64)


def _hash_hits(
    chunk: Hashes, hashes: Hashes, flags: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]
) -> Iterator[tuple[Positions, Positions]]:
    """Pairs (index into sorted `hashes`, index into `chunk`) of equal hash, until each index is found.

    The first round pairs every open validation window with the first training window of its hash. Later
    rounds try the next one, for those only that `found` (which the caller updates) still leaves open: a
    collision.
    """
    places = np.flatnonzero(flags[_flag(chunk)])
    places = places[np.argsort(chunk[places], kind="stable")]
    distinct, first, counts = np.unique(chunk[places], return_index=True, return_counts=True)
    left = np.searchsorted(hashes, distinct, side="left")
    sizes = np.searchsorted(hashes, distinct, side="right") - left
    row = np.repeat(np.arange(len(distinct)), sizes)
    here = np.arange(len(row)) + np.repeat(left - (np.cumsum(sizes) - sizes), sizes)
    attempt = 0
    while True:
        is_open = ~found[here] & (counts[row] > attempt)
        here, row = here[is_open], row[is_open]
        if not len(here):
            return
        yield here, places[first[row] + attempt]
        attempt += 1


def _same_bytes(
    one: Tokens, one_starts: Positions, other: Tokens, other_starts: Positions, window: int
) -> npt.NDArray[np.bool_]:
    """same[k] iff the windows at one_starts[k] and other_starts[k] are equal. Shape (k,)."""
    ours = np.lib.stride_tricks.sliding_window_view(one, window)
    theirs = np.lib.stride_tricks.sliding_window_view(other, window)
    same = np.zeros(len(one_starts), bool)
    for start in range(0, len(one_starts), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        same[part] = (ours[one_starts[part]] == theirs[other_starts[part]]).all(axis=1)
    return same
