"""Golden anchors of the learning rate: anchor(n) = phi^-n / 2, and the anchor nearest to a given rate.

The default anchor, n = 10, is 0.004065…: the golden number nearest to the 0.004 that the seed project used. (The
seed's own identity, 0.004 = alpha_phi / phi^3 with alpha_phi = phi^-3 / 2, is false: that is 0.0279.)
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from karat.core.golden import PHI, Golden
from karat.core.ops import Number

ALPHA_PHI = PHI**-3 / 2
"""The seed's alpha_phi, (sqrt 5 - 2) / 2 = 0.1180339887…"""


FURTHEST = 80
"""Anchors -80 and 80 are 2.6e16 and 9.5e-18: every learning rate lies between."""


def anchor(n: int) -> Golden:
    """phi^-n / 2, exactly."""
    return PHI**-n / 2


def band(n: int, k: int) -> tuple[Golden, Golden]:
    """The exact ends (anchor / phi^k, anchor · phi^k) of the band around anchor n; k >= 0."""
    if k < 0:
        raise ValueError(f"a band needs k >= 0, got {k}")
    return anchor(n) * PHI**-k, anchor(n) * PHI**k


def nearer(rate: Number, low: Number, high: Number) -> bool:
    """Whether `low` is the nearer of two neighbouring anchors low <= rate <= high on the logarithmic scale.

    rate / low <= high / rate, written without division.
    """
    below: bool = rate * rate <= low * high
    return below


def nearest_anchor(rate: float | Fraction) -> int:
    """The n whose anchor is nearest to a positive rate on the logarithmic scale; decided exactly.

    ValueError for a rate that is not positive and finite, or that lies beyond anchor 80 or -80.
    """
    if not (rate > 0 and rate - rate == 0):  # an infinity less itself is NaN
        raise ValueError(f"a learning rate must be positive and finite, got {rate!r}")
    exact = Fraction(rate)
    for n in _outwards():
        if is_nearest(exact, n):
            return n
    raise ValueError(f"the anchors are searched to n = {FURTHEST} and -{FURTHEST}; {rate!r} lies beyond")


def is_nearest(rate: Fraction, n: int) -> bool:
    """Whether anchor n is nearer to a positive rational than both its neighbours; of one n, since phi is irrational."""
    return nearer(rate, anchor(n), anchor(n - 1)) and not nearer(rate, anchor(n + 1), anchor(n))


def _outwards() -> Iterator[int]:
    """0, 1, -1, 2, -2, … as far as FURTHEST: the learning rates' anchors first."""
    for k in range(FURTHEST + 1):
        yield k
        yield -k
