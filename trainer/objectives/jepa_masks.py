"""Span masks that hide the declared share: exactly round(ratio · length) tokens of every row, in runs of low to high.

The lengths of the spans are uniform on low to high, given that they sum to the declared number; the spans go to
distinct gaps between the visible tokens, so that two never touch and every run of masked tokens is one span. All of it
follows from (seed, step): nothing is rejected and drawn again, and no global generator is read. Source: span masking as
in SpanBERT, Joshi et al. 2020, arXiv 1907.10529. The seed's sampler ignored its ratio of 0.30: two spans of at most 9,
whatever the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from karat.core.errors import ConfigError

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]
Reals = npt.NDArray[np.float64]
STREAM = 1
"""The highest word of Philox's counter: the batches draw from word 0 under keys of the same seed."""


class Plan(NamedTuple):
    """What every row of one length gets: how many tokens are masked, in how many spans at least and at most."""

    masked: int
    fewest: int
    most: int


@dataclass(frozen=True)
class Spans:
    """ratio: share of the tokens, 0 < ratio < 1. low, high: tokens of a span, 1 <= low <= high."""

    ratio: float
    low: int
    high: int

    def plan(self, length: int) -> Plan:
        """The plan for rows of `length` tokens. ConfigError where no mask is possible, naming the nearest that is."""
        masked = round(self.ratio * length)
        if not self._possible(masked, length):
            raise self._refusal(masked, length)
        return Plan(masked, *self._numbers(masked, length))

    def masks(self, rows: int, length: int, *, seed: int, step: int) -> Mask:
        """(rows, length), true where masked; the same for equal (seed, step), whatever was drawn before.

        0 <= seed < 2^64, step >= 0. The first rows do not depend on how many follow.
        """
        masked, fewest, most = self.plan(length)
        gaps = length - masked + 1
        width = 1 + most + gaps
        philox = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, STREAM], np.uint64))
        bits = philox.random_raw(rows * width).reshape(rows, width)
        ways = _log_ways(self.low, min(self.high, masked), masked, most)
        spans_R = fewest + _pick(np.broadcast_to(ways[fewest:, masked], (rows, most - fewest + 1)), bits[:, 0])
        lengths_RS = self._lengths(ways, spans_R, masked, bits[:, 1 : 1 + most])
        chosen_RG = np.argsort(np.argsort(bits[:, 1 + most :], axis=1), axis=1) < spans_R[:, None]
        which_RG = np.maximum(np.cumsum(chosen_RG, axis=1) - 1, 0)
        at_gap_RG = np.where(chosen_RG, np.take_along_axis(lengths_RS, which_RG, axis=1), 0)
        visible_RV = np.arange(gaps - 1) + np.cumsum(at_gap_RG, axis=1)[:, :-1]
        mask = np.ones((rows, length), np.bool_)
        np.put_along_axis(mask, visible_RV, False, axis=1)
        return mask

    def _lengths(self, ways: Reals, spans_R: Counts, masked: int, bits_RS: Bits) -> Counts:
        """(rows, most): lengths whose first `spans` of a row sum to `masked`, zeros after them."""
        lengths_L = np.arange(self.low, min(self.high, masked) + 1)
        drawn_RS = np.zeros(bits_RS.shape, np.int64)
        left_R = np.full(len(spans_R), masked)
        for place in range(bits_RS.shape[1]):
            after_R = spans_R - 1 - place
            left_RL = left_R[:, None] - lengths_L
            log_weights = ways[np.maximum(after_R, 0)[:, None], np.maximum(left_RL, 0)]
            picked_R = _pick(np.where(left_RL >= 0, log_weights, -np.inf), bits_RS[:, place])
            drawn_RS[:, place] = np.where(after_R >= 0, lengths_L[picked_R], 0)
            left_R = left_R - drawn_RS[:, place]
        return drawn_RS

    def _numbers(self, masked: int, length: int) -> tuple[int, int]:
        """The fewest and the most spans of low to high tokens that make up `masked`, apart from each other."""
        return -(-masked // self.high), min(masked // self.low, length - masked + 1)

    def _possible(self, masked: int, length: int) -> bool:
        fewest, most = self._numbers(masked, length)
        return 0 < masked < length and fewest <= most

    def _refusal(self, masked: int, length: int) -> ConfigError:
        seen = (
            f"a mask ratio of {self.ratio:g} on {length} tokens is {masked} tokens, which spans of {self.low} to "
            f"{self.high} tokens, each apart from the next, cannot make up"
        )
        possible = [m for m in range(1, length) if self._possible(m, length)]
        if not possible:
            return ConfigError(
                seen,
                required=f"more than {self.low} tokens, so that a span and a visible token fit",
                next_step=f"model.context={self.low + 1} or more, or jepa.span_low={max(1, length - 1)} or less",
            )
        nearest = min(possible, key=lambda m: (abs(m - masked), m))
        return ConfigError(
            seen,
            required="spans · low <= masked <= spans · high for some number of spans, and a visible token between two",
            next_step=f"jepa.ratio={nearest / length:.6g} masks {nearest} of {length}; or other jepa.span_low, jepa.span_high",
        )


@lru_cache(maxsize=8)
def _log_ways(low: int, high: int, masked: int, most: int) -> Reals:
    """(most + 1, masked + 1): ln of the probability that j lengths, uniform on low to high, sum to m; -inf where none."""
    ways = np.full((most + 1, masked + 1), -np.inf)
    ways[0, 0] = 0.0
    for spans in range(1, most + 1):
        with_last = np.full((high - low + 1, masked + 1), -np.inf)
        for length in range(low, high + 1):
            with_last[length - low, length:] = ways[spans - 1, : masked + 1 - length]
        ways[spans] = np.logaddexp.reduce(with_last, axis=0) - math.log(high - low + 1)
    ways.flags.writeable = False
    return ways


def _pick(log_weights_RN: Reals, bits_R: Bits) -> Counts:
    """(rows,): a choice in each row with probability proportional to exp(log weight); 0 where all are -inf."""
    most_R = log_weights_RN.max(axis=1, keepdims=True)
    up_to_RN = np.cumsum(np.exp(log_weights_RN - np.where(np.isfinite(most_R), most_R, 0)), axis=1)
    share_R = (bits_R >> np.uint64(12)) * 2.0**-52  # below 1 by an ulp of any sum: the product stays below the sum
    picked: Counts = (up_to_RN > (share_R * up_to_RN[:, -1])[:, None]).argmax(axis=1)
    return picked
