"""Shannon entropy with its unit said: nats or bits, from probabilities or from counts.

H = -sum p ln p (nats), the same divided by ln 2 (bits), with 0 ln 0 = 0. For K states 0 <= H <= ln K nats.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

from karat.core.bounds import Log, upper_endpoint
from karat.core.formulas.schedule import clamp
from karat.core.ops import FLOAT, Number, Ops


def entropy_nats(probabilities: Sequence[Number], ops: Ops = FLOAT) -> Number:
    """-sum p ln p, in nats. The probabilities are >= 0 and add up to 1; each may be an array."""
    return -ops.sum(ops.xlogx(p) for p in probabilities)


def frequencies(counts: Sequence[Number], ops: Ops = FLOAT) -> list[Number]:
    """counts / their sum; counts >= 0 and not all 0 (ZeroDivisionError on Python numbers)."""
    total = ops.sum(counts)
    return [count / total for count in counts]


@functools.cache
def most_nats(states: int) -> float:
    """The largest double that is <= ln(states), the entropy that no distribution on so many states exceeds."""
    return upper_endpoint(Log(Fraction(states)))


def entropy_of_counts_nats(counts: Sequence[Number]) -> Number:
    """The entropy, in nats, of a histogram of Python numbers, as a double in [0, ln(number of states)].

    The last operation is a clamp: over the reals it changes nothing (that is proved of entropy_nats), in float64 it
    takes away the rounding by which a uniform histogram could come out above ln K.
    """
    return clamp(entropy_nats(frequencies(counts)), 0.0, most_nats(len(counts)))
