"""An exact bound and its float64 endpoint, rounded INWARD: what the float guard accepts, the exact bound accepts.

A lower bound is rounded up and an upper bound down, so `low.at_least <= x` in float64 implies `bound <= x` over the
reals, for every double x. An exact value is an int, a Fraction, a Golden or a `Log`; all can be enclosed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from karat.core.golden import Golden


@dataclass(frozen=True)
class Log:
    """The exact number ln(argument) / ln(base), base e when None; argument rational and > 0. Enclosed, never rounded."""

    argument: Fraction
    base: Fraction | None = None

    def __post_init__(self) -> None:
        if self.argument <= 0 or (self.base is not None and self.base <= 1):
            raise ValueError(f"Log needs argument > 0 and base > 1, got {self}")

    def enclosure(self, bits: int = 64) -> tuple[Fraction, Fraction]:
        """Rationals (low, high) around the value, narrower as bits grows."""
        low, high = _ln(self.argument, bits)
        if self.base is None:
            return low, high
        base_low, base_high = _ln(self.base, bits)
        quotients = [low / base_low, low / base_high, high / base_low, high / base_high]
        return min(quotients), max(quotients)

    def __str__(self) -> str:
        if self.base is None:
            return f"ln {self.argument}"
        return f"log_{self.base} {self.argument}"


def _ln(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Enclosure of ln x: ln x = k ln 2 + 2 artanh((y - 1)/(y + 1)) with y = x / 2^k in [2/3, 4/3]."""
    k = 0
    while x > Fraction(4, 3):
        x, k = x / 2, k + 1
    while x < Fraction(2, 3):
        x, k = x * 2, k - 1
    low, high = _twice_artanh((x - 1) / (x + 1), bits + 8)
    low2, high2 = _twice_artanh(Fraction(1, 3), bits + 8)  # ln 2
    return low + min(k * low2, k * high2), high + max(k * low2, k * high2)


def _twice_artanh(z: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Enclosure of 2 artanh z for |z| <= 1/3, from the series z + z^3/3 + … with its geometric remainder."""
    if z < 0:
        low, high = _twice_artanh(-z, bits)
        return -high, -low
    total, power, n, target = Fraction(0), z, 1, Fraction(1, 1 << bits)
    while 2 * power / n > target:
        total, power, n = total + power / n, power * z * z, n + 2
    remainder = power / n / (1 - z * z)
    return 2 * total, 2 * (total + remainder)


Exact = int | Fraction | Golden | Log


def enclose(value: Exact, bits: int = 64) -> tuple[Fraction, Fraction]:
    """Rationals (low, high) with low <= value <= high; equal for a rational value."""
    if isinstance(value, (Golden, Log)):
        return value.enclosure(bits)
    return Fraction(value), Fraction(value)


def less_equal(a: Exact, b: Exact) -> bool:
    """a <= b, decided exactly. Two logarithms that are equal in value cannot be decided: ArithmeticError."""
    for bits in (64, 256, 1024, 4096):
        (a_low, a_high), (b_low, b_high) = enclose(a, bits), enclose(b, bits)
        if a_high <= b_low:
            return True
        if a_low > b_high:
            return False
        if isinstance(a, (int, Fraction, Golden)) and isinstance(b, (int, Fraction, Golden)):
            return a <= b
        if a == b:
            return True
    raise ArithmeticError(f"cannot decide {a} <= {b} within 4096 bits")


def least(*values: Exact) -> Exact:
    """The smallest of the exact values."""
    result = values[0]
    for value in values[1:]:
        result = result if less_equal(result, value) else value
    return result


def _inward(value: Exact, *, up: bool) -> float:
    bits = 96
    while True:
        low, high = enclose(value, bits)
        ends = []
        for end in (low, high):
            x = float(end)
            if up and Fraction(x) < end:
                x = math.nextafter(x, math.inf)
            if not up and Fraction(x) > end:
                x = math.nextafter(x, -math.inf)
            ends.append(x)
        if ends[0] == ends[1]:
            return ends[0]
        bits *= 2


def lower_endpoint(value: Exact) -> float:
    """The smallest double that is >= value."""
    return _inward(value, up=True)


def upper_endpoint(value: Exact) -> float:
    """The largest double that is <= value."""
    return _inward(value, up=False)


@dataclass(frozen=True)
class Interval:
    """The exact closed interval [low, high] with its inward float64 endpoints `at_least` and `at_most`."""

    low: Exact
    high: Exact

    def __post_init__(self) -> None:
        if not less_equal(self.low, self.high):
            raise ValueError(f"empty interval: {self.low} > {self.high}")

    @property
    def at_least(self) -> float:
        return lower_endpoint(self.low)

    @property
    def at_most(self) -> float:
        return upper_endpoint(self.high)

    def contains(self, value: Exact) -> bool:
        """low <= value <= high, exactly."""
        return less_equal(self.low, value) and less_equal(value, self.high)

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}]"

    def decimal(self) -> str:
        """The interval in decimals, from the inward endpoints."""
        return f"[{self.at_least:.6g}, {self.at_most:.6g}]"
