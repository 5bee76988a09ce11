"""Exact numbers a + b·phi with rational a and b: the field Q(sqrt 5), where every golden bound lives.

`Golden` is a total order with exact arithmetic, so `Golden(0, 1) ** -11 / 2 <= Fraction(1, 250)` is decided, not
approximated. `float()` is correctly rounded (to nearest, ties to even), `enclosure()` gives rational bounds of any
width. Source: phi is the positive root of x^2 = x + 1; the conjugate of a + b·phi is (a + b) - b·phi.
"""

from __future__ import annotations

import math
from fractions import Fraction

Rational = int | Fraction


def _sign(value: Fraction) -> int:
    return (value > 0) - (value < 0)


class Golden:
    """The exact number `rational + golden * phi`. Immutable and hashable; equal to an int or Fraction of its value."""

    __slots__ = ("golden", "rational")

    rational: Fraction
    golden: Fraction

    def __init__(self, rational: Rational = 0, golden: Rational = 0) -> None:
        for part in (rational, golden):
            if isinstance(part, bool) or not isinstance(part, (int, Fraction)):
                raise TypeError(
                    f"Golden takes int or Fraction, got {part!r}; write Fraction({part!r}) if you mean its exact value"
                )
        object.__setattr__(self, "rational", Fraction(rational))
        object.__setattr__(self, "golden", Fraction(golden))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Golden is immutable")

    def __reduce__(self) -> tuple[type[Golden], tuple[Fraction, Fraction]]:
        return (Golden, (self.rational, self.golden))

    @staticmethod
    def lift(value: object) -> Golden | None:
        """The Golden equal to an int, Fraction or Golden; None for anything else (a float is not exact)."""
        if isinstance(value, Golden):
            return value
        if isinstance(value, (int, Fraction)) and not isinstance(value, bool):
            return Golden(value)
        return None

    # -- field -------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> Golden:
        o = Golden.lift(other)
        return NotImplemented if o is None else Golden(self.rational + o.rational, self.golden + o.golden)

    def __sub__(self, other: object) -> Golden:
        o = Golden.lift(other)
        return NotImplemented if o is None else Golden(self.rational - o.rational, self.golden - o.golden)

    def __mul__(self, other: object) -> Golden:
        o = Golden.lift(other)
        if o is None:
            return NotImplemented
        a, b, c, d = self.rational, self.golden, o.rational, o.golden
        return Golden(a * c + b * d, a * d + b * c + b * d)  # phi^2 = phi + 1

    def __truediv__(self, other: object) -> Golden:
        o = Golden.lift(other)
        return NotImplemented if o is None else self * o.inverse()

    def __radd__(self, other: object) -> Golden:
        return self + other

    def __rmul__(self, other: object) -> Golden:
        return self * other

    def __rsub__(self, other: object) -> Golden:
        return -self + other

    def __rtruediv__(self, other: object) -> Golden:
        return self.inverse() * other

    def __neg__(self) -> Golden:
        return Golden(-self.rational, -self.golden)

    def __pos__(self) -> Golden:
        return self

    def __abs__(self) -> Golden:
        return -self if self.sign() < 0 else self

    def __pow__(self, exponent: object) -> Golden:
        if isinstance(exponent, bool) or not isinstance(exponent, int):
            return NotImplemented
        base, n, result = (self.inverse() if exponent < 0 else self), abs(exponent), Golden(1)
        while n:
            if n & 1:
                result = result * base
            base, n = base * base, n >> 1
        return result

    def conjugate(self) -> Golden:
        """The image under phi -> 1 - phi."""
        return Golden(self.rational + self.golden, -self.golden)

    def norm(self) -> Fraction:
        """self * conjugate, a rational number: a^2 + ab - b^2."""
        return self.rational * self.rational + self.rational * self.golden - self.golden * self.golden

    def inverse(self) -> Golden:
        norm = self.norm()
        if norm == 0:  # only zero has norm 0: sqrt 5 is irrational
            raise ZeroDivisionError("division by Golden zero")
        c = self.conjugate()
        return Golden(c.rational / norm, c.golden / norm)

    # -- order -------------------------------------------------------------------------------------------------

    def sign(self) -> int:
        """-1, 0 or 1, decided exactly: the sign of (2a + b) + b·sqrt 5."""
        u, v = 2 * self.rational + self.golden, self.golden
        if _sign(u) == _sign(v) or v == 0:
            return _sign(u) or _sign(v)
        if u == 0:
            return _sign(v)
        return _sign(u) if u * u > 5 * v * v else _sign(v)

    def _compare(self, other: object) -> float | None:
        """Negative, zero or positive as self is below, at or above other; NaN when unordered; None when not a number."""
        if isinstance(other, float):
            if not math.isfinite(other):
                return -other  # every Golden is below +inf and above -inf, and unordered with NaN
            return (self - Fraction(other)).sign()  # a double is an exact rational
        o = Golden.lift(other)
        return None if o is None else (self - o).sign()

    def __eq__(self, other: object) -> bool:
        order = self._compare(other)
        return NotImplemented if order is None else order == 0

    def __lt__(self, other: object) -> bool:
        order = self._compare(other)
        return NotImplemented if order is None else order < 0

    def __le__(self, other: object) -> bool:
        order = self._compare(other)
        return NotImplemented if order is None else order <= 0

    def __gt__(self, other: object) -> bool:
        order = self._compare(other)
        return NotImplemented if order is None else order > 0

    def __ge__(self, other: object) -> bool:
        order = self._compare(other)
        return NotImplemented if order is None else order >= 0

    def __hash__(self) -> int:
        return hash(self.rational) if self.golden == 0 else hash((Golden, self.rational, self.golden))

    def __bool__(self) -> bool:
        return self.sign() != 0

    # -- out of the field --------------------------------------------------------------------------------------

    def enclosure(self, bits: int = 64) -> tuple[Fraction, Fraction]:
        """Rationals (low, high) with low <= self <= high and high - low <= |golden| / 2^bits."""
        scale = 1 << bits
        root = math.isqrt(5 * scale * scale)  # root / scale <= sqrt 5 < (root + 1) / scale
        low_phi, high_phi = (1 + Fraction(root, scale)) / 2, (1 + Fraction(root + 1, scale)) / 2
        ends = (self.rational + self.golden * low_phi, self.rational + self.golden * high_phi)
        return min(ends), max(ends)

    def __float__(self) -> float:
        """The nearest double, ties to even (a tie needs golden = 0, where Fraction already rounds so)."""
        if self.golden == 0:
            return float(self.rational)
        bits = 128
        while True:
            low, high = self.enclosure(bits)
            if float(low) == float(high):
                return float(low)
            bits *= 2

    def __str__(self) -> str:
        """The formula: `3/2 + 1/2·phi`."""
        if self.golden == 0:
            return str(self.rational)
        coefficient = "" if abs(self.golden) == 1 else f"{abs(self.golden)}·"
        term = f"{coefficient}phi"
        if self.rational == 0:
            return term if self.golden > 0 else f"-{term}"
        return f"{self.rational} {'+' if self.golden > 0 else '-'} {term}"

    def __repr__(self) -> str:
        return f"Golden({self.rational!s}, {self.golden!s})"

    def decimal(self, places: int = 10) -> str:
        """The value rounded to `places` decimals, correctly (from the exact number, not from a double)."""
        scaled, bits = self * 10**places, 64 + 4 * places
        low, high = scaled.enclosure(bits)
        while round(low) != round(high):
            bits *= 2
            low, high = scaled.enclosure(bits)
        digits = round(low)
        sign, digits = ("-" if digits < 0 else ""), abs(digits)
        whole, part = divmod(digits, 10**places)
        return f"{sign}{whole}.{part:0{places}d}" if places else f"{sign}{whole}"


PHI = Golden(0, 1)
"""The golden ratio (1 + sqrt 5) / 2 = 1.6180339887…"""
