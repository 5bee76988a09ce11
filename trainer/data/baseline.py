"""A counting model gives the score that a trained model has to beat before it can be said to have learned.

The byte trigram model mixes the frequencies of a byte after two, one and no bytes of context with the uniform
distribution (Jelinek and Mercer 1980). The four weights are fitted by expectation-maximisation on the tail of
the TRAINING text, with counts from its head; the validation text is only scored.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from karat.core.errors import DataError
from karat.trainer.data.disjoint import Positions, Tokens

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BYTES = 256
ORDERS = 4  # two context bytes, one, none, uniform
TAIL_SHARE = 10  # the last tenth of train fits the weights,
TAIL_LARGEST = 1 << 20  # but no more than 1 MiB of it: four numbers need no more
EM_STEPS = 20
LEAST_WEIGHT = 1e-6  # so that no byte is impossible: at most log2(256 / 1e-6) = 28 bits
CHUNK = 1 << 20  # bytes looked at at a time: 32 MiB of components


@dataclass(frozen=True, eq=False)
class TrigramCounts:
    """How often each byte follows two, one and no bytes of context.

    two: (256^3,) int64 indexed by (a * 256 + b) * 256 + c, 128 MiB. one: (256^2,). none: (256,). two_total
    (256^2,) and one_total (256,) are the sums over the byte that follows.
    """

    two: Counts
    one: Counts
    none: Counts
    two_total: Counts
    one_total: Counts


@dataclass(frozen=True, eq=False)
class Trigram:
    """p(c | a, b) = w2 f(c | a, b) + w1 f(c | b) + w0 f(c) + wu / 256; the weights are positive and sum to 1.

    Where a context was never counted, the next shorter one stands in for it, so that p still sums to 1.
    """

    counts: TrigramCounts
    weights: tuple[float, float, float, float]

    def distribution(self, context: bytes) -> Floats:
        """p(c | context) for all 256 bytes c: shape (256,). Only the last two bytes of the context count."""
        known = context[-2:]
        text = np.array([[*known, c] for c in range(BYTES)], np.int64)
        a = text[:, 0] if len(known) == 2 else None
        b = text[:, len(known) - 1] if known else None
        p: Floats = _components(self.counts, a, b, text[:, -1]) @ np.array(self.weights)
        return p

    def bits(self, text: Tokens, given: int = 1) -> float:
        """-log2 p in bits, summed over every byte of the text (n,) but the first `given` >= 1, which are context only."""
        if len(text) <= given:
            return 0.0
        weights = np.array(self.weights)
        total = 0.0
        if given == 1:
            second = _components(self.counts, None, text[:1].astype(np.int64), text[1:2].astype(np.int64))
            total = -float(np.log2(second @ weights).sum())
        for start in range(max(2, given), len(text), CHUNK):
            total -= float(np.log2(_text_components(self.counts, text[start - 2 : start + CHUNK]) @ weights).sum())
        return total


def trigram_bpb(train: Tokens, validation: Tokens, given: int = 1) -> float:
    """Bits per byte of the trigram model of `train` on the whole validation text (every byte but the first).

    train, validation: (n,) uint8 with n >= 2, else DataError. given: bytes at the start that are not scored, >= 1: those
    of the first token, where a model of tokens is compared with. Deterministic. About 250 MiB at its peak.
    """
    if len(validation) <= given:
        seen = f"a validation text of {len(validation)} bytes"
        raise DataError(seen, required=f"at least {given + 1} bytes", next_step="give a longer validation text")
    return fit_trigram(train).bits(validation, given) / (len(validation) - given)


def fit_trigram(train: Tokens) -> Trigram:
    """The model of `train` (n,) uint8: weights fitted on its tail against its head, then counts from all."""
    if len(train) < 2:
        seen = f"a training text of {len(train)} bytes"
        raise DataError(seen, required="at least 2 bytes", next_step="give a longer training text")
    tail = min(TAIL_LARGEST, max(1, len(train) // TAIL_SHARE))
    head = len(train) - tail
    parts = _text_components(count_trigrams(train[:head]), train[max(0, head - 2) :])
    return Trigram(count_trigrams(train), fit_weights(parts))


def fit_weights(parts: Floats) -> tuple[float, float, float, float]:
    """Weights that (nearly) maximise the likelihood of bytes whose four component probabilities are `parts`.

    parts: (n, 4), last column positive; n = 0 keeps the uniform start. EM never lowers the likelihood
    (Dempster, Laird and Rubin 1977). No weight is left below LEAST_WEIGHT.
    """
    weights = np.full(ORDERS, 1.0 / ORDERS)
    for _ in range(EM_STEPS if len(parts) else 0):
        # The share of each component in explaining each byte, averaged over the bytes.
        weights *= parts.T @ (1.0 / (parts @ weights)) / len(parts)
    weights = np.maximum(weights, LEAST_WEIGHT)
    two, one, none, uniform = (weights / weights.sum()).tolist()
    return two, one, none, uniform


def count_trigrams(text: Tokens) -> TrigramCounts:
    """Counts of every run of one, two and three bytes of the text (n,) uint8, n >= 1. Takes 128 MiB."""
    two = np.zeros(BYTES**3, np.int64)
    one = np.zeros(BYTES**2, np.int64)
    for start in range(0, len(text), CHUNK):
        part = text[start : start + CHUNK + 2].astype(np.int64)
        pairs = part[:-1] * BYTES + part[1:]
        np.add.at(two, pairs[:-1] * BYTES + part[2:], 1)
        one += np.bincount(pairs[:CHUNK], minlength=BYTES**2)
    none = np.bincount(text, minlength=BYTES).astype(np.int64)
    return TrigramCounts(
        two, one, none, two.reshape(BYTES**2, BYTES).sum(axis=1), one.reshape(BYTES, BYTES).sum(axis=1)
    )


def _text_components(counts: TrigramCounts, text: Tokens) -> Floats:
    """Component probabilities of every byte of the text but the first two. Shape (n - 2, 4)."""
    part = text.astype(np.int64)
    return _components(counts, part[:-2], part[1:-1], part[2:])


def _components(counts: TrigramCounts, a: Positions | None, b: Positions | None, c: Positions) -> Floats:
    """(n, 4): f(c | a, b), f(c | b), f(c), 1 / 256. Context that is None or was never counted is left out."""
    parts = np.empty((len(c), ORDERS))
    parts[:, 3] = 1.0 / BYTES
    parts[:, 2] = counts.none[c] / counts.none.sum()
    parts[:, 1] = parts[:, 2] if b is None else _frequency(counts.one, counts.one_total, b, c, parts[:, 2])
    known = None if a is None or b is None else a * BYTES + b
    parts[:, 0] = parts[:, 1] if known is None else _frequency(counts.two, counts.two_total, known, c, parts[:, 1])
    return parts


def _frequency(counts: Counts, totals: Counts, context: Positions, c: Positions, otherwise: Floats) -> Floats:
    """counts[context, c] / totals[context], or `otherwise` for a context never counted. Shape (n,)."""
    total = totals[context]
    return np.where(total > 0, counts[context * BYTES + c] / np.maximum(total, 1), otherwise)
