"""Golden anchors of the learning rate: anchor(n) = phi^-n / 2, and the anchor nearest to a given rate.

The default anchor, n = 10, is 0.004065…: the golden number nearest to the 0.004 that the seed project used. (The
seed's own identity, 0.004 = alpha_phi / phi^3 with alpha_phi = phi^-3 / 2, is false: that is 0.0279.)
"""

from __future__ import annotations

import math
from fractions import Fraction

from karat.core.golden import PHI, Golden
from karat.core.ops import Number

ALPHA_PHI = PHI**-3 / 2
"""The seed's alpha_phi, (sqrt 5 - 2) / 2 = 0.1180339887…"""


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

    ValueError for a rate that is not positive and finite.
    """
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"a learning rate must be positive and finite, got {rate!r}")
    exact = Fraction(rate)
    n = -math.floor(_log_phi(2 * exact))
    while anchor(n) > exact:  # the float estimate may be off by one: settle it exactly
        n += 1
    while anchor(n - 1) <= exact:
        n -= 1
    return n if nearer(exact, anchor(n), anchor(n - 1)) else n - 1


def _log_phi(x: Fraction) -> float:
    """log_phi x in floating point, for any positive rational (no overflow): an estimate only."""
    return (math.log(x.numerator) - math.log(x.denominator)) / math.log(float(PHI))
