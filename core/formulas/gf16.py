"""GF16: the 16-bit float with 1 sign, 6 exponent and 9 fraction bits, bias 31, IEEE-754 in all else.

E = 1..62: (-1)^S 2^(E-31) (1 + M/512). E = 0: zero and subnormals (-1)^S 2^-30 M/512. E = 63: infinity (M = 0) and
NaN (encoded quiet, M = 256). Rounding: to nearest, ties to even; from half an ulp above the largest number: infinity.

Two codecs. `decode` and `encode` are the reference: exact rationals on plain ints, close to the definition. The `_bits`
functions are what runs: integer operations without a branch, the same source for Python ints, NumPy and torch
integer arrays and solver bit-vectors. They must be equal; proofs/ shows that they are, for every code and every float32.
Source: the format's specification in the seed project, whose own test vectors contradict it (1.0 is 0x3E00).
"""

from __future__ import annotations

import math
from fractions import Fraction

from karat.core.ops import FLOAT, Number, Ops

BIAS = 31
MAX_FINITE = Fraction(2) ** 31 * (2 - Fraction(1, 512))
"""4 290 772 992 = 0x7DFF."""
OVERFLOW = Fraction(2) ** 31 * (2 - Fraction(1, 1024))
"""From here on a value rounds to infinity."""
MIN_NORMAL = Fraction(1, 2**30)
MIN_SUBNORMAL = Fraction(1, 2**39)
UNIT_ROUNDOFF = Fraction(1, 2**10)
"""The largest relative rounding error of a normal value."""
INFINITY_CODE, NAN_CODE = 0x7E00, 0x7F00


# -- the reference, on exact numbers ------------------------------------------------------------------------------


def decode(code: int) -> Fraction | float:
    """The number with this 16-bit code: a Fraction, or a float for -0.0, the infinities and NaN."""
    if not 0 <= code <= 0xFFFF:
        raise ValueError(f"a GF16 code is in 0..0xFFFF, got {code}")
    sign, exponent, fraction = code >> 15, (code >> 9) & 0x3F, code & 0x1FF
    if exponent == 63:
        return math.nan if fraction else (-math.inf if sign else math.inf)
    if exponent == 0:
        magnitude = Fraction(fraction, 512) * MIN_NORMAL
        if magnitude == 0 and sign:
            return -0.0
    else:
        magnitude = Fraction(2) ** (exponent - BIAS) * (1 + Fraction(fraction, 512))
    return -magnitude if sign else magnitude


def encode(value: float | Fraction) -> int:
    """The code of the GF16 number nearest to value, ties to even, for any float or Fraction."""
    negative = value.hex().startswith("-") if isinstance(value, float) else value < 0  # -0.0 is negative
    sign = 0x8000 if negative else 0
    if isinstance(value, float) and math.isnan(value):
        return NAN_CODE
    if isinstance(value, float) and math.isinf(value):
        return sign | INFINITY_CODE
    magnitude = abs(Fraction(value))
    exponent = max(-30, _floor_log2(magnitude))
    units = round(magnitude * Fraction(2) ** (9 - exponent))  # Python rounds ties to even
    # A significand of 512 units or more carries the hidden bit into the exponent field; 1024 carries once more.
    return sign | min(units + ((exponent + 30) << 9), INFINITY_CODE)


def _floor_log2(x: Fraction) -> int:
    """The largest k with 2^k <= x, for x >= 2^-200; -201 below, zero included."""
    return ((x.numerator << 200) // x.denominator).bit_length() - 201


# -- what runs, on bits -------------------------------------------------------------------------------------------

_F32_INFINITY = 0x7F800000
_F32_MIN_NORMAL = (127 - 30) << 23  # bits of 2^-30
_F32_OVERFLOW = ((127 + 31) << 23) | 0x7FE000  # bits of OVERFLOW


def round_magnitude_bits(magnitude: Number, ops: Ops = FLOAT) -> Number:
    """float32 bits (sign cleared) -> float32 bits of the nearest GF16 number, ties to even.

    The significand is rounded in place at bit 14 for normal results and further left for subnormal ones; a carry runs
    into the exponent field, which is what rounding up to the next power of two means. NaN stays NaN (quiet).
    """
    normal = magnitude >= _F32_MIN_NORMAL
    exponent = magnitude >> 23
    drop = ops.where(normal, 14, ops.where(exponent < 88, 23, 111 - exponent))  # bits below the last one kept
    significand = (magnitude & 0x7FFFFF) | 0x800000
    half_less_one = (1 << (drop - 1)) - 1
    finite = ops.where(magnitude < _F32_OVERFLOW, magnitude, 0)  # keeps the sum below 2^31
    rounded = ((finite + half_less_one + ((significand >> drop) & 1)) >> drop) << drop
    tiny = ops.where(
        magnitude > (87 << 23), ops.constant(88 << 23, magnitude), 0
    )  # below 2^-39: up only when past half of it, 2^-40
    rounded = ops.where(exponent < 88, tiny, rounded)
    rounded = ops.where(magnitude >= _F32_OVERFLOW, _F32_INFINITY, rounded)
    return ops.where(magnitude > _F32_INFINITY, 0x7FC00000, rounded)


def code_of_magnitude_bits(magnitude: Number, ops: Ops = FLOAT) -> Number:
    """float32 bits (sign cleared) -> the 15-bit GF16 code, by rounding and then moving the fields."""
    rounded = round_magnitude_bits(magnitude, ops)
    exponent = rounded >> 23
    significand = (rounded & 0x7FFFFF) | 0x800000
    normal = (rounded >> 14) - ((127 - BIAS) << 9)
    shift = ops.where(exponent < 88, 24, ops.where(exponent > 96, 14, 111 - exponent))
    subnormal = significand >> shift  # counts units of 2^-39, exactly
    code = ops.where(rounded >= _F32_MIN_NORMAL, normal, subnormal)
    code = ops.where(rounded >= _F32_INFINITY, INFINITY_CODE, code)
    return ops.where(rounded > _F32_INFINITY, NAN_CODE, code)


def magnitude_bits_of_code(code: Number, ops: Ops = FLOAT) -> Number:
    """The 15-bit GF16 code -> float32 bits (sign cleared); exact, since every GF16 number is a float32."""
    fraction = code & 0x1FF
    bits = (code << 14) + ((127 - BIAS) << 23)
    subnormal: Number = ops.where(fraction < 1, ops.constant(0, code), 88 << 23)
    for k in range(1, 9):  # highest set bit k: value 2^(k - 39) · (1 + rest / 2^k)
        value = ((88 + k) << 23) + ((fraction - (1 << k)) << (23 - k))
        subnormal = ops.where(fraction >= (1 << k), value, subnormal)
    bits = ops.where(code < 512, subnormal, bits)
    bits = ops.where(code >= INFINITY_CODE, _F32_INFINITY, bits)
    return ops.where(code > INFINITY_CODE, 0x7FC00000, bits)
