"""The batch of a step depends on (seed, step) alone, so the position in the data IS the step.

A resumed run asks for step n and gets what the uninterrupted run got; there is no iterator to save. One epoch
uses every window once, in a fresh order and from a fresh phase, so that window edges fall elsewhere each
time. Windows share no target. A batch may end one epoch and begin the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from karat.core.errors import DataError
from karat.trainer.data.disjoint import Positions

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Ids = npt.NDArray[np.uint8 | np.uint16]
"""Tokens by number: bytes, or what a tokenizer made of them; in memory or mapped."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Training batches of one text as a pure function of the step.

    tokens: (n,) uint8 or uint16 with n >= context + 1. context: tokens per row. batch_size: rows. seed: 0 <= seed <
    2^64. rows: the text is sequences of context + 1 tokens end to end, and a window is one of them, whole. DataError
    for anything else. (Buffers that are used again and again are not measurably faster than fresh arrays.)
    """

    tokens: Ids
    context: int
    batch_size: int
    seed: int
    rows: bool = False

    def __post_init__(self) -> None:
        _check_shape(self.tokens, self.context, self.batch_size, least=self.context + 1)
        if self.rows:
            _check_rows(self.tokens, self.context)
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"seed {self.seed}", required="0 <= seed < 2^64")

    @property
    def windows_per_epoch(self) -> int:
        """How many windows one epoch uses, once each; the same for every epoch."""
        return windows_per_epoch(len(self.tokens), self.context, self.rows)

    def batch_at(self, step: int) -> Batch:
        """(inputs, targets) of a step >= 0: fresh int64 arrays (batch_size, context), targets one byte on."""
        if step < 0:
            raise DataError(f"a batch was asked for at step {step}", required="step >= 0")
        first = int(step) * self.batch_size
        starts = _starts(len(self.tokens), self.context, self.seed, first, first + self.batch_size, self.rows)
        return _pick(self._windows, starts)

    @cached_property
    def _windows(self) -> Ids:
        return _windows(self.tokens, self.context)


def windows_per_epoch(length: int, context: int, rows: bool = False) -> int:
    """Windows of context + 1 tokens, sharing only end points, that fit from every phase 0 <= phase < context.

    One window where the text is too short for that; `epoch_starts` then has fewer phases to choose from. rows:
    windows that share nothing, from phase 0.
    """
    if rows:
        return length // (context + 1)
    return max(1, (length - context) // context)


@lru_cache(maxsize=4)
def epoch_starts(length: int, context: int, seed: int, epoch: int, rows: bool = False) -> Positions:
    """Where the windows of one epoch start, in the order of use: shape (windows_per_epoch,), read-only.

    The random bits are Philox-4x64's raw output under the key (seed, epoch) (Salmon et al. 2011), which NumPy
    promises never to change (NEP 19); `Generator.permutation` has no such promise. Sorting them is the
    permutation.
    """
    count = windows_per_epoch(length, context, rows)
    stride = context + rows
    phases = 1 if rows else length - count * context  # every token is used from one phase or another
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count + 1)
    starts = int(bits[0] % np.uint64(phases)) + np.argsort(bits[1:], kind="stable") * stride
    starts.flags.writeable = False
    return starts


def validation_windows(tokens: Ids, context: int, batch_size: int, rows: bool = False) -> Iterator[Batch]:
    """Batches in which every token of the text but the first is a target exactly once, in order.

    tokens: (n,) uint8 or uint16 with n >= 2. Yields int64 (inputs, targets), both (rows, context) with rows <=
    batch_size; the tokens left over come last as one row (1, rest), unpadded. So the mean over the text is the
    sum of the losses over the sum of `targets.size`, not the mean of batch means. rows: the text is sequences of
    context + 1 tokens, and the first of each is no target.
    """
    _check_shape(tokens, context, batch_size, least=2)
    if rows:
        _check_rows(tokens, context)
    return _validation_windows(tokens, context, batch_size, rows)


def _validation_windows(tokens: Ids, context: int, batch_size: int, rows: bool) -> Iterator[Batch]:
    whole = len(tokens) // (context + 1) if rows else (len(tokens) - 1) // context
    starts = np.arange(whole) * (context + rows)
    for row in range(0, whole, batch_size):
        yield _pick(_windows(tokens, context), starts[row : row + batch_size])
    rest = 0 if rows else len(tokens) - 1 - whole * context
    if rest:
        yield _pick(_windows(tokens[whole * context :], rest), np.array([0]))


def _starts(length: int, context: int, seed: int, first: int, last: int, rows: bool) -> Positions:
    """Starts of the windows first <= g < last, numbered through all epochs. Shape (last - first,)."""
    count = windows_per_epoch(length, context, rows)
    epochs = range(first // count, (last - 1) // count + 1)
    parts = [
        epoch_starts(length, context, seed, epoch, rows)[max(0, first - epoch * count) : last - epoch * count]
        for epoch in epochs
    ]
    return np.concatenate(parts)


def _windows(tokens: Ids, context: int) -> Ids:
    """Every window of context + 1 tokens, as a view: picking rows of it copies runs, not single tokens."""
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)


def _pick(windows: Ids, starts: Positions) -> Batch:
    """Fresh (inputs, targets) of the windows at the starts."""
    rows = windows[starts]
    return rows[:, :-1].astype(np.int64, order="C"), rows[:, 1:].astype(np.int64, order="C")


def _check_rows(tokens: Ids, context: int) -> None:
    if len(tokens) % (context + 1):
        seen = f"{len(tokens):,} tokens in sequences of {context + 1:,}"
        raise DataError(seen, required="whole sequences", next_step="set model.context as the data was made with")


def _check_shape(tokens: Ids, context: int, batch_size: int, *, least: int) -> None:
    if context < 1 or batch_size < 1:
        seen = f"context {context} and batch size {batch_size}"
        raise DataError(seen, required="both at least 1")
    if tokens.ndim != 1 or tokens.dtype not in (np.uint8, np.uint16):
        raise DataError(f"tokens of shape {tokens.shape} and type {tokens.dtype}", required="(n,) uint8 or uint16")
    if len(tokens) < least:
        seen = f"a text of {len(tokens):,} tokens with context {context}"
        raise DataError(seen, required=f"at least {least:,} tokens", next_step="give more text or a smaller context")
