"""What a printed decimal says, and whether a computed number agrees with it.

A decimal stands for the numbers that round to it: half a unit of its last digit on either side. `~` doubles that, and
then the trailing zeros of a whole number are not digits: `~11,000` is 10,000 to 12,000, `11,000` is 11,000. Suffixes k, M
and % scale, and e-10 does. The comparison is exact for int, Fraction, Golden and Log; a float counts as the rational that it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from karat.core.bounds import Exact, less_equal
from karat.proofs.ledger.record import Checker, Finding

Number = Exact | float

_DECIMAL = re.compile(r"(~?)([+-]?)(\d[\d,]*)(?:\.(\d+))?(?:e([+-]?\d+))?([kM%]?)")
_SCALE = {"": Fraction(1), "k": Fraction(1000), "M": Fraction(10**6), "%": Fraction(1, 100)}


def read(stated: str) -> tuple[Fraction, Fraction]:
    """The interval that a printed decimal stands for. ValueError for anything else."""
    match = _DECIMAL.fullmatch(stated)
    if match is None:
        raise ValueError(f"{stated!r} is not a decimal such as 0.67, ~11,000 or 97.8%")
    about, sign, whole, part, power, suffix = match.groups()
    whole = whole.replace(",", "")
    digits = part or ""
    value = Fraction(int(whole + digits), 10 ** len(digits)) * (-1 if sign == "-" else 1)
    unit = Fraction(1, 10 ** len(digits))
    if about and part is None:
        unit *= 10 ** (len(whole) - len(whole.rstrip("0"))) if whole.strip("0") else 1
    slack = unit if about else unit / 2
    scale = _SCALE[suffix] * Fraction(10) ** int(power or 0)
    return (value - slack) * scale, (value + slack) * scale


def agrees(stated: str, value: Number) -> bool:
    """Whether the number rounds to the printed decimal."""
    low, high = read(stated)
    exact = Fraction(value) if isinstance(value, float) else value
    return less_equal(low, exact) and less_equal(exact, high)


def show(value: Number, digits: int = 6) -> str:
    """A number to at most six digits; a whole number up to a billion in full, with separators."""
    if isinstance(value, (int, Fraction)) and value == int(value) and abs(int(value)) < 10**9:
        return f"{int(value):,}"
    number = value if isinstance(value, (int, float)) else _nearest(value)
    return f"{number:.{digits}g}"


def _nearest(value: Exact) -> float:
    if isinstance(value, (int, Fraction)):
        return float(value)
    low, high = value.enclosure(96)
    return float((low + high) / 2)


def percent(value: Number) -> str:
    """A share in per cent, to one decimal."""
    return f"{100 * float(show(value, 6).replace(',', '')):.1f}%"


def number(compute: Callable[[], Number], note: str = "", unit: str = "") -> Checker:
    """Checks that the printed decimal agrees with the computed number."""

    def check(stated: str) -> Finding:
        value = compute()
        shown = percent(value) if stated.endswith("%") else show(value)
        return Finding(agrees(stated, value), f"{shown} {unit}".strip(), note)

    return check


def exactly(compute: Callable[[], Exact], note: str = "") -> Checker:
    """Checks that the stated exact number equals the computed one: no rounding."""

    def check(stated: Exact) -> Finding:
        value = compute()
        return Finding(bool(stated == value), show(value), note)

    return check
