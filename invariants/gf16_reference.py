"""Obligations of INV-3 about the reference codec: `gf16.decode` and `gf16.encode`, on exact numbers, are the format's.

Everything else about GF16 is held against these two, so they are held against the format's definition: what a code is
worth by its fields, and which code is nearest to a number, ties to even. `numbers` is that definition.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from karat.core.formulas import gf16
from karat.core.obligation import Checked, Exhaustive, Obligation

LAST = gf16.INFINITY_CODE - 1
"""The code of the largest number."""


@functools.cache
def numbers() -> Any:
    """The number of each of the 65,536 codes, by its fields: (-1)^s · 2^(e - 31) · (1 + f/512), 2^-30 · f/512 for e = 0,
    infinity and NaN for e = 63. Every one is a double."""
    code = np.arange(1 << 16)
    sign, exponent, fraction = code // 2**15, code // 2**9 % 2**6, code % 2**9
    normal = np.ldexp(512.0 + fraction, exponent - 40)
    size = np.where(exponent == 0, np.ldexp(1.0 * fraction, -39), normal)
    size = np.where(exponent == 63, np.where(fraction == 0, math.inf, math.nan), size)
    return np.copysign(size, np.where(sign == 1, -1.0, 1.0))


def _worth(code: int) -> float:
    return float(numbers()[code])


def _decode_is(decode: Any) -> Checked:
    for code in (-1, 1 << 16, 1 << 20):
        try:
            decode(code)
        except ValueError:
            continue
        return Checked(0, f"{code} is decoded, and is no code")
    for code, worth in enumerate(numbers().tolist()):
        value = decode(code)
        exact = isinstance(value, Fraction) or worth == 0 or not math.isfinite(worth)
        same = math.isnan(value) if math.isnan(worth) else value == worth
        if not exact or not same or (worth == 0 and math.copysign(1, value) != math.copysign(1, worth)):
            return Checked(code, f"code {code:#06x} is decoded {value!r}, by its fields {worth!r}")
    return Checked((1 << 16) + 3)


def _specials() -> dict[Any, int]:
    huge = Fraction(10) ** 60
    return {
        0.0: 0, Fraction(0): 0, math.inf: gf16.INFINITY_CODE, -math.inf: gf16.INFINITY_CODE | 0x8000,
        1e300: gf16.INFINITY_CODE, -1e300: gf16.INFINITY_CODE | 0x8000, huge: gf16.INFINITY_CODE,
        -huge: gf16.INFINITY_CODE | 0x8000, 5e-324: 0, -5e-324: 0x8000, 1.0: 0x3E00, -2.0: 0xC000,
    }  # fmt: skip


def _encode_is(encode: Any) -> Checked:
    """Every number of the format, both signs; and points at and beside the middle between two: which way they go."""
    cases = 0
    for value, code in _specials().items():
        if encode(value) != code:
            return Checked(cases, f"{value!r} is encoded {encode(value):#06x}, not {code:#06x}")
        cases += 1
    if encode(-0.0) != 0x8000 or encode(math.nan) != gf16.NAN_CODE:
        return Checked(cases, "-0.0 or NaN")
    for code in range(LAST + 1):
        here = Fraction(_worth(code))
        points = {here: code}
        if code < 1100 or code % 512 in (0, 1, 2, 510, 511) or code % 61 == 0:
            above = Fraction(_worth(code + 1)) if code < LAST else 2 * here - Fraction(_worth(code - 1))
            middle = (here + above) / 2
            points |= {
                middle: code + code % 2,
                middle - (above - here) / 1000: code,
                middle + (above - here) / 1000: code + 1,
            }
        for point, expected in points.items():
            if encode(point) != expected or (point and encode(-point) != expected | 0x8000):
                return Checked(cases, f"{point} is encoded {encode(point):#06x}, not {expected:#06x}")
            cases += 1
    return Checked(cases)


def _bias_30(code: int) -> Any:
    return 2 * gf16.decode(code)


def _truncates(value: Any) -> int:
    code = gf16.encode(value)
    if code & 0x7FFF >= gf16.INFINITY_CODE:
        return code
    return code - 1 if abs(Fraction(_worth(code & 0x7FFF))) > abs(Fraction(value)) else code


OBLIGATIONS: tuple[Obligation, ...] = (
    Exhaustive("INV-3.decode", "the reference decoder gives what the fields of a code are worth: all 65,536 codes; and it "
               "refuses what is no code", (gf16.decode,), check=_decode_is, rivals={"bias 30": (_bias_30,)}),
    Exhaustive("INV-3.encode", "the reference encoder gives the nearest code, ties to even: every number of the format, and at "
               "and beside the middles between two", (gf16.encode,), check=_encode_is, rivals={"truncation": (_truncates,)}),
)  # fmt: skip
