"""The corpus "synthetic": constant, counting and random sequences of tokens, a third each, whose floor is known.

Sequence i of context + 1 tokens, V tokens in all: i mod 3 = 0 is the token (i mod (V - 1)) + 1 throughout, 1 counts
on from i mod V modulo V, 2 is drawn evenly. It is not text, and not code: a model that has learned all that there is
to learn still pays ln V for every random token. `synthetic` is drawn from seed 42, `synthetic:7` from seed 7; how
many sequences there are does not depend on the length of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from karat.core.errors import DataError
from karat.trainer.data.disjoint import Overlap
from karat.trainer.data.manifest import Manifest, sha256_hex

NAME = "synthetic"
SEED = 42
KINDS = ("constant", "counting", "random")
RANDOM = KINDS.index("random")
TRAIN, HELD_OUT = 15_999, 960  # sequences, in thirds
FEWEST, MOST = 2, 1 << 16

Sequences = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Synthetic:
    """train (TRAIN, context + 1) and validation (HELD_OUT, context + 1) uint16; row i is of kind KINDS[i % 3]."""

    train: Sequences
    validation: Sequences
    vocab: int
    manifest: Manifest

    @property
    def row(self) -> int:
        """Tokens of a sequence: the first is given, the others are targets."""
        return int(self.train.shape[1])

    @property
    def floor(self) -> float:
        """`floor_nats` of the validation side."""
        kinds = np.arange(len(self.validation)) % len(KINDS)
        return floor_nats(self.vocab, self.row - 1, float(np.mean(kinds == RANDOM)))


def floor_nats(vocab: int, context: int, share_random: float) -> float:
    """share_random·ln V + ln 3 / T, in nats per target: what is left to pay when all that can be known is known.

    Every target counts, the first of a sequence too: only from it does one learn which of the three kinds the sequence
    is of, which costs ln 3 once in T targets. Who also knows by heart which tokens are constants can save a part of
    that ln 3 / T, so the floor is exact to within ln 3 / T.
    """
    return share_random * math.log(vocab) + math.log(len(KINDS)) / context


def is_synthetic(source: str) -> bool:
    """Whether a source names this corpus."""
    return source == NAME or source.startswith(f"{NAME}:")


def load_synthetic(source: str, vocab: int, context: int) -> Synthetic:
    """The corpus of `synthetic` or `synthetic:SEED`; equal arguments, equal tokens, on any machine.

    DataError for a seed that is none, a vocabulary beyond uint16, and sequences so short that the random ones recur.
    """
    seed = _seed(source)
    if not FEWEST <= vocab <= MOST or context < 1:
        seen = f"a vocabulary of {vocab:,} and a context of {context:,} for {NAME} data"
        raise DataError(seen, required=f"{FEWEST} to {MOST:,} tokens, and a context of 1 or more")
    first = TRAIN  # of the held-out sequences: they go on counting where training ends
    train = sequences(range(TRAIN), vocab, context, seed)
    validation = sequences(range(first, first + HELD_OUT), vocab, context, seed)
    shared = _shared(train, validation)
    if shared[RANDOM]:
        raise DataError(
            f"{shared[RANDOM]} of {HELD_OUT // 3} random held-out sequences also stand in training: with {vocab} tokens "
            f"there are too few sequences of {context + 1}",
            required="random sequences that differ between training and validation",
            next_step="set a larger model.vocab or model.context",
        )
    return Synthetic(train, validation, vocab, _manifest(source, seed, train, validation, shared))


def sequences(indices: range, vocab: int, context: int, seed: int) -> Sequences:
    """Rows of the given indices: (len(indices), context + 1) uint16. Row i depends on i, V, context and seed alone."""
    i = np.arange(indices.start, indices.stop, indices.step)[:, None]
    j = np.arange(context + 1)[None, :]
    rows = np.where(i % 3 == 0, i % (vocab - 1) + 1, (i % vocab + j) % vocab).astype(np.uint16)
    for place in np.flatnonzero(i[:, 0] % 3 == RANDOM):
        bits = np.random.Philox(key=np.array([seed, i[place, 0]], np.uint64)).random_raw(context + 1)
        rows[place] = bits % np.uint64(vocab)
    return rows


def _shared(train: Sequences, validation: Sequences) -> tuple[int, ...]:
    """How many held-out sequences of each kind also stand in training, whole."""
    known = {row.tobytes() for row in train}
    hits = [row.tobytes() in known for row in validation]
    return tuple(sum(hits[kind :: len(KINDS)]) for kind in range(len(KINDS)))


def _manifest(source: str, seed: int, train: Sequences, validation: Sequences, shared: tuple[int, ...]) -> Manifest:
    each = len(validation) // len(KINDS)
    recur = ", ".join(f"{shared[kind]} of {each} {name}" for kind, name in enumerate(KINDS))
    total = sum(shared)
    row = validation.shape[1] * validation.itemsize
    texts = [np.ascontiguousarray(side, "<u2").tobytes() for side in (train, validation)]
    return Manifest(
        source=source,
        rule=(
            f"drawn from seed {seed}: {len(train):,} sequences of {train.shape[1]:,} tokens train, {len(validation):,} "
            f"others validate, a third each {', '.join(KINDS)}; of the held-out ones {recur} also stand whole in "
            "training: there are no more than V constant and V counting sequences, so those recur and only the random "
            "ones are held out; sizes are of tokens of two bytes"
        ),
        files=(),
        skipped=0,
        train_bytes=len(texts[0]),
        validation_bytes=len(texts[1]),
        train_sha256=sha256_hex(texts[0]),
        validation_sha256=sha256_hex(texts[1]),
        overlap=Overlap(row, len(validation), total, total * row, len(texts[1]), total / len(validation)),
    )


def _seed(source: str) -> int:
    """The seed that a source names; DataError for one that is not a number from 0 to 2^64 - 1."""
    text = source.removeprefix(NAME).removeprefix(":") if source != NAME else str(SEED)
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) >= 1 << 64:
        seen = f"no corpus is named {source!r}"
        raise DataError(seen, required=f"{NAME}, or {NAME}:SEED with 0 <= SEED < 2^64", next_step=f"try {NAME}:7")
    return int(text)
