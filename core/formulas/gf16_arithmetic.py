"""GF16 arithmetic on codes: every result is the exact one rounded once, to nearest, ties to even.

Integers alone: a finite number is a significand times a power of two, sums are aligned in a frame whose lowest bit is
sticky (40 bits, 30 for fma: a bit is lost only where the result keeps none of the lowest eight), and `round_to_code` is
the only place that rounds. The same source runs on Python ints, NumPy arrays of int64 and 64-bit solver terms; a shift
beyond the lane's width must give zero (Python, NumPy and the solver do so). Codes are 0..0xFFFF. IEEE-754 in all else:
x + (-x) = +0, -0 + -0 = -0, inf - inf and 0 · inf are NaN, and every NaN that comes out is NAN_CODE.
Source: IEEE 754-2019, clauses 4.3.1, 6.1 to 6.3.
"""

from __future__ import annotations

from karat.core.formulas.gf16 import INFINITY_CODE, NAN_CODE, code_of_magnitude_bits, magnitude_bits_of_code
from karat.core.ops import FLOAT, Number, Ops

SIGN = 0x8000
MAGNITUDE = 0x7FFF

# -- one code ---------------------------------------------------------------------------------------------------------


def is_nan(a: Number) -> Number:
    """Whether the code is a NaN."""
    return (a & MAGNITUDE) > INFINITY_CODE


def negate(a: Number) -> Number:
    """-a: the sign bit turned, of a NaN too."""
    return a ^ SIGN


def absolute(a: Number) -> Number:
    """|a|: the sign bit cleared, of a NaN too."""
    return a & MAGNITUDE


def next_up(a: Number, ops: Ops = FLOAT) -> Number:
    """The least number above a: of both zeros the smallest positive one, of the largest +inf; +inf and NaN stay."""
    up = ops.where((a & SIGN) == 0, a + 1, a - 1)
    up = ops.where(a == SIGN, 1, up)
    up = ops.where(a == INFINITY_CODE, a, up)
    return ops.where(is_nan(a), NAN_CODE, up)


def next_down(a: Number, ops: Ops = FLOAT) -> Number:
    """The greatest number below a: -next_up(-a); a NaN is NAN_CODE."""
    return ops.where(is_nan(a), NAN_CODE, negate(next_up(negate(a), ops)))


# -- order ------------------------------------------------------------------------------------------------------------


def ordinal(a: Number, ops: Ops = FLOAT) -> Number:
    """An integer that orders the codes as their numbers are ordered; both zeros have 0. Not for NaN."""
    magnitude = a & MAGNITUDE
    return ops.where((a & SIGN) == 0, magnitude, -magnitude)


def less(a: Number, b: Number, ops: Ops = FLOAT) -> Number:
    """a < b: false when either is NaN, and of two zeros."""
    return ops.where(unordered(a, b), False, ordinal(a, ops) < ordinal(b, ops))


def equal(a: Number, b: Number, ops: Ops = FLOAT) -> Number:
    """a = b: false when either is NaN, true of two zeros."""
    return ops.where(unordered(a, b), False, ordinal(a, ops) == ordinal(b, ops))


def unordered(a: Number, b: Number) -> Number:
    """Whether either is NaN."""
    return is_nan(a) | is_nan(b)


# -- rounding, once ---------------------------------------------------------------------------------------------------


def unpack(magnitude: Number, ops: Ops = FLOAT) -> tuple[Number, Number]:
    """(significand, exponent) of a finite code without sign: the number is significand · 2^exponent, significand < 1024."""
    field = ops.maximum(magnitude >> 9, 1)  # subnormal numbers have the exponent of the smallest normal ones
    return magnitude - ((field - 1) << 9), field - 40


def shift_sticky(x: Number, distance: Number, ops: Ops = FLOAT) -> Number:
    """x >> distance with the lowest bit set when a bit was lost: enough to round by, two bits higher up."""
    shifted = x >> distance
    return ops.where((shifted << distance) == x, shifted, shifted | 1)


def round_to_code(significand: Number, exponent: Number, ops: Ops = FLOAT) -> Number:
    """The code without sign of significand · 2^exponent, rounded to nearest, ties to even, infinite when too large.

    significand < 2^41 with a sticky lowest bit; 0, or at least 512 unless the result is subnormal.
    """
    drop: Number = ops.constant(0, significand)  # the bits below the ten that a normal result keeps
    for step in (16, 8, 4, 2, 1):
        drop = drop + ops.where(significand >> (drop + step) >= 512, step, ops.constant(0, significand))
    drop = ops.maximum(drop, -39 - exponent)  # a subnormal result keeps what is above 2^-39
    kept = shift_sticky(significand << 2, drop, ops)  # with a guard bit and a sticky bit below
    rounded = (kept + 1 + ((kept >> 2) & 1)) >> 2
    # A significand of 512 or more carries its hidden bit into the exponent field; 1024 carries once more.
    code = rounded + ((exponent + drop + 39) << 9)
    return ops.where(significand == 0, 0, ops.minimum(code, INFINITY_CODE))


def _sum(a: tuple[Number, Number, Number], b: tuple[Number, Number, Number], ops: Ops) -> Number:
    """The code of a + b for two terms (sign bit, significand < 2^40, exponent)."""
    (sign_a, x, exponent_a), (sign_b, y, exponent_b) = a, b
    exponent = ops.maximum(exponent_a, exponent_b)
    x, y = shift_sticky(x, exponent - exponent_a, ops), shift_sticky(y, exponent - exponent_b, ops)
    total = ops.where(sign_a == 0, x, -x) + ops.where(sign_b == 0, y, -y)
    size = ops.absolute(total)
    sign = ops.where(total == size, ops.constant(0, total), SIGN)
    sign = ops.where(total == 0, sign_a & sign_b, sign)
    return sign | round_to_code(size, exponent, ops)


# -- addition, multiplication, both -----------------------------------------------------------------------------------


def add(a: Number, b: Number, ops: Ops = FLOAT) -> Number:
    """The code of a + b, rounded once."""
    size_a, size_b = a & MAGNITUDE, b & MAGNITUDE
    (x, exponent_a), (y, exponent_b) = unpack(size_a, ops), unpack(size_b, ops)
    result = _sum((a & SIGN, x << 30, exponent_a - 30), (b & SIGN, y << 30, exponent_b - 30), ops)
    result = ops.where(size_a == INFINITY_CODE, a, result)
    result = ops.where(size_b == INFINITY_CODE, b, result)
    opposite = (size_a == INFINITY_CODE) & (size_b == INFINITY_CODE) & (a != b)
    return ops.where(opposite | unordered(a, b), NAN_CODE, result)


def subtract(a: Number, b: Number, ops: Ops = FLOAT) -> Number:
    """The code of a - b, rounded once."""
    return add(a, negate(b), ops)


def multiply(a: Number, b: Number, ops: Ops = FLOAT) -> Number:
    """The code of a · b, rounded once."""
    size_a, size_b, sign = a & MAGNITUDE, b & MAGNITUDE, (a ^ b) & SIGN
    (x, exponent_a), (y, exponent_b) = unpack(size_a, ops), unpack(size_b, ops)
    result = sign | round_to_code((x * y) << 21, exponent_a + exponent_b - 21, ops)
    infinite = (size_a == INFINITY_CODE) | (size_b == INFINITY_CODE)
    result = ops.where(infinite, sign | INFINITY_CODE, result)
    undefined = infinite & ((size_a == 0) | (size_b == 0))
    return ops.where(undefined | unordered(a, b), NAN_CODE, result)


def fma(a: Number, b: Number, c: Number, ops: Ops = FLOAT) -> Number:
    """The code of a · b + c, rounded once: the product is not rounded before the sum."""
    size_a, size_b, size_c, sign = a & MAGNITUDE, b & MAGNITUDE, c & MAGNITUDE, (a ^ b) & SIGN
    # A zero product takes the lowest exponent, that of 0 · 0, so that the addend is not shifted out of the frame.
    (x, exponent_a) = unpack(ops.where(size_b == 0, size_b, size_a), ops)
    (y, exponent_b) = unpack(ops.where(size_a == 0, size_a, size_b), ops)
    (z, exponent_c) = unpack(size_c, ops)
    product = (sign, (x * y) << 10, exponent_a + exponent_b - 10)
    result = _sum(product, (c & SIGN, z << 20, exponent_c - 20), ops)
    infinite = (size_a == INFINITY_CODE) | (size_b == INFINITY_CODE)
    result = ops.where(size_c == INFINITY_CODE, c, result)
    result = ops.where(infinite, sign | INFINITY_CODE, result)
    undefined = infinite & ((size_a == 0) | (size_b == 0))
    opposite = infinite & (size_c == INFINITY_CODE) & (sign != c & SIGN)
    return ops.where(undefined | opposite | unordered(a, b) | is_nan(c), NAN_CODE, result)


# -- conversion -------------------------------------------------------------------------------------------------------


def of_float32(bits: Number, ops: Ops = FLOAT) -> Number:
    """The code of the float32 with these bits, rounded once; every NaN is NAN_CODE."""
    code = ((bits >> 16) & SIGN) | code_of_magnitude_bits(bits & 0x7FFFFFFF, ops)
    return ops.where(is_nan(code), NAN_CODE, code)


def to_float32(a: Number, ops: Ops = FLOAT) -> Number:
    """The bits of the float32 that equals the number: exact. A NaN is quiet."""
    return ((a & SIGN) << 16) | magnitude_bits_of_code(a & MAGNITUDE, ops)


_F64_MAGNITUDE = (1 << 63) - 1
_F64_FRACTION = (1 << 52) - 1
_F64_INFINITY = 0x7FF << 52


def of_float64(bits: Number, ops: Ops = FLOAT) -> Number:
    """The code of the float64 with these bits, rounded once and not by way of float32; every NaN is NAN_CODE.

    A subnormal float64 is read as if it had a hidden bit: it rounds to zero either way. Infinity overflows as it should.
    """
    magnitude = bits & _F64_MAGNITUDE
    significand = shift_sticky((magnitude & _F64_FRACTION) + (1 << 52), 12, ops)
    sign = ops.where(bits == magnitude, ops.constant(0, bits), SIGN)
    code = sign | round_to_code(significand, (magnitude >> 52) - (1075 - 12), ops)
    return ops.where(magnitude > _F64_INFINITY, NAN_CODE, code)


def to_float64(a: Number, ops: Ops = FLOAT) -> Number:
    """The bits of the float64 that equals the number: exact, by way of float32, which is exact too. A NaN is quiet."""
    magnitude = a & MAGNITUDE
    bits = magnitude_bits_of_code(magnitude, ops) << 29
    bits = ops.where(magnitude == 0, bits, bits + ((1023 - 127) << 52))
    return ((a & SIGN) << 48) | ops.where(magnitude >= INFINITY_CODE, bits | _F64_INFINITY, bits)
