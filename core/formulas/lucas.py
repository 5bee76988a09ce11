"""Lucas numbers by their integer recurrence, and how far a double is from an even golden power.

L_0 = 2, L_1 = 1, L_(n+2) = L_n + L_(n+1); then phi^(2n) + phi^(-2n) = L_2n for every n >= 0, because phi and its
conjugate -1/phi solve the same recurrence. Every unit u with u + 1/u an integer has sums that are integers (1 + sqrt 2:
2, 6, 34, 198): closure is no property of phi alone, and says nothing of rounding.
"""

from __future__ import annotations

from fractions import Fraction

from karat.core.ops import FLOAT, Number, Ops

START = (2, 1)
"""(L_0, L_1)."""
HALF_ULP = Fraction(1, 2**53)
"""The largest relative error of a number rounded to the nearest double: |g - x| <= 2^-53 |g| in the normal range."""


def next_pair(a: Number, b: Number) -> tuple[Number, Number]:
    """(L_n, L_(n+1)) -> (L_(n+1), L_(n+2))."""
    return b, a + b


def lucas(n: int) -> int:
    """L_n for n >= 0, an integer; ValueError for n < 0."""
    if n < 0:
        raise ValueError(f"Lucas numbers are counted from 0 here, got n = {n}")
    a, b = START
    for _ in range(n):
        a, b = next_pair(a, b)
    return a


def closure_margin(g: Number, closes_to: Number, ops: Ops = FLOAT) -> Number:
    """2^-53 g^2 - |g^2 - closes_to·g + 1|: >= 0 iff g + 1/g is closes_to to within 2^-53 |g|. No division; exact on Fractions.

    With closes_to = u + 1/u this is 2^-53 g^2 - |(g - u)(g - 1/u)|.
    """
    return HALF_ULP * g * g - ops.absolute(g * g - closes_to * g + 1)
