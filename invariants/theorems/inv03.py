"""Theorems behind INV-3: GF16 as a format of Flocq, its rounding of any real number, and the codec of exact rationals.

The rounding of real numbers is Flocq's own and has no running counterpart; what runs is tied to it by the theorem that
decoding what `encode` gives is that rounding, for every rational below OVERFLOW. The codec on bits is tied to `encode`
and `decode` at points here, and by INV-3.encoder, .rounding and .decoder for every float32 and every code.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import gf16
from karat.core.obligation import Counterpart, Obligation, Theorem

_FORMAT, _CODEC = "INV03_gf16_safe_domain", "INV03_gf16_encode"
_CORNERS = (0x0000, 0x0001, 0x0002, 0x01FF, 0x0200, 0x0201, 0x03FF, 0x0400, 0x3E00, 0x7C00, 0x7DFE, 0x7DFF)


def _magnitude_code(random: Random) -> int:
    """A finite code without sign: the corners of the format, its subnormal numbers, and any."""
    return random.choice([random.choice(_CORNERS), random.randrange(0x200), random.randrange(gf16.INFINITY_CODE)])


def _number(code: int) -> Fraction:
    """The value of a finite code without sign."""
    return Fraction(gf16.decode(code))


def _magnitude(random: Random) -> Fraction:
    """A number, the middle of two (a tie), either side of a middle, a fraction of any size, or one that overflows."""
    code = random.randrange(0x7DFF) if random.random() < 0.7 else random.choice(_CORNERS[:-1])
    here, after = _number(code), _number(code + 1)
    middle = (here + after) / 2
    near = (after - here) * Fraction(random.choice([-1, 1]), 64)
    fraction = Fraction(random.randint(0, 999), random.randint(1, 99)) * Fraction(2) ** random.randint(-45, 28)
    large = random.choice(
        [gf16.MAX_FINITE, gf16.OVERFLOW, gf16.OVERFLOW - 1, gf16.OVERFLOW + 1, Fraction(2**32), Fraction(2**40)]
    )
    return random.choice([here, middle, middle, middle + near, fraction, fraction, large])


def _sample_value(random: Random) -> dict[str, Any]:
    return {"value": random.choice([1, -1]) * _magnitude(random)}


def _sample_code(random: Random) -> dict[str, Any]:
    return {"code": random.choice([0, 0x8000]) | _magnitude_code(random)}


def _float32(random: Random) -> Fraction:
    """A magnitude that is a float32: numbers of the format, middles and their sides are, fractions are cut to one."""
    return Fraction(_of_bits(_bits(_magnitude(random))))


def _sample_finite(random: Random) -> dict[str, Any]:
    """Below OVERFLOW, so that what it rounds to is a number."""
    value = _float32(random)
    return {"value": value if value < gf16.OVERFLOW else _number(_magnitude_code(random))}


def _bits(value: Fraction) -> int:
    return int.from_bytes(struct.pack(">f", float(value)), "big")


def _of_bits(bits: int) -> float:
    return float(struct.unpack(">f", bits.to_bytes(4, "big"))[0])


def _decode(values: Mapping[str, Any]) -> Fraction:
    return Fraction(gf16.decode(values["code"]))


def _encode(values: Mapping[str, Any]) -> int:
    return gf16.encode(values["value"])


def _code_of_bits(values: Mapping[str, Any]) -> Any:
    return gf16.code_of_magnitude_bits(_bits(values["value"]))


def _round_bits(values: Mapping[str, Any]) -> Fraction:
    return Fraction(_of_bits(gf16.round_magnitude_bits(_bits(values["value"]))))


def _value_of_code(values: Mapping[str, Any]) -> Fraction:
    return Fraction(_of_bits(gf16.magnitude_bits_of_code(values["code"])))


DECODE = Counterpart(
    f"{_FORMAT}.decode", gf16.decode, f"parts ({_FORMAT}.decode {{code}})", _sample_code, _decode, points=400
)
ENCODE = Counterpart(
    f"{_FORMAT}.encode", gf16.encode, f"{_FORMAT}.encode {{value}}", _sample_value, _encode, points=400
)
CODE_OF_BITS = Counterpart(f"{_FORMAT}.encode", gf16.code_of_magnitude_bits, f"{_FORMAT}.encode {{value}}",
                           lambda random: {"value": _float32(random)}, _code_of_bits)  # fmt: skip
ROUND_BITS = Counterpart(f"{_FORMAT}.encode", gf16.round_magnitude_bits,
                         f"parts ({_FORMAT}.decode ({_FORMAT}.encode {{value}}))", _sample_finite, _round_bits)  # fmt: skip
VALUE_OF_CODE = Counterpart(f"{_FORMAT}.decode", gf16.magnitude_bits_of_code, f"parts ({_FORMAT}.decode {{code}})",
                            lambda random: {"code": _magnitude_code(random)}, _value_of_code)  # fmt: skip

_ENCODERS = (gf16.encode, gf16.code_of_magnitude_bits)
_ROUNDING = (gf16.encode, gf16.decode, gf16.code_of_magnitude_bits, gf16.round_magnitude_bits)
_ROUND = (ENCODE, DECODE, CODE_OF_BITS, ROUND_BITS)
_DECODERS = (gf16.decode, gf16.magnitude_bits_of_code)
_VALUE = (DECODE, VALUE_OF_CODE)

# The theorems about rounding in the format speak of Flocq's rounding of reals; INV-3.coq-encode says that the code rounds so.
THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-3.coq-encode", "for every rational below OVERFLOW in size, decoding its code is rounding it to ten "
            "bits, least number 2^-39, to nearest, ties to even, as Flocq defines it, and the code is finite",
            _ROUNDING, file=_CODEC, theorem="encode_rounds", counterparts=_ROUND),
    Theorem("INV-3.coq-overflow", "every rational of size OVERFLOW or more has the code of infinity, with its sign",
            _ENCODERS, file=_CODEC, theorem="encode_overflows", counterparts=(ENCODE, CODE_OF_BITS)),
    Theorem("INV-3.coq-relative-error", "rounding in the format errs by at most 2^-10 |x|, for every real x with |x| "
            ">= 2^-30", (), file=_FORMAT, theorem="relative_error"),
    Theorem("INV-3.coq-absolute-error", "rounding in the format errs by at most 2^-40, for every real x with |x| < "
            "2^-29", (), file=_FORMAT, theorem="absolute_error"),
    Theorem("INV-3.coq-codec-relative", "decoding the code of a rational q errs by at most 2^-10 |q|, for 2^-30 <= |q| and q "
            "below OVERFLOW in size",
            _ROUNDING, file=_CODEC, theorem="codec_relative_error", counterparts=_ROUND),
    Theorem("INV-3.coq-codec-absolute", "decoding the code of a rational q errs by at most 2^-40, for |q| < 2^-29", _ROUNDING,
            file=_CODEC, theorem="codec_absolute_error", counterparts=_ROUND),
    Theorem("INV-3.coq-monotone", "rounding in the format keeps the order of any two real numbers", (), file=_FORMAT,
            theorem="monotone"),
    Theorem("INV-3.coq-encode-monotone", "of two rationals that are not negative the larger has no smaller code, infinity's "
            "included", _ENCODERS, file=_CODEC, theorem="encode_monotone", counterparts=(ENCODE, CODE_OF_BITS)),
    Theorem("INV-3.coq-exact", "rounding in the format leaves a real number as it is iff it is of the format", (),
            file=_FORMAT, theorem="fixed_iff_in_format"),
    Theorem("INV-3.coq-idempotent", "rounding twice in the format is rounding once, for every real number", (),
            file=_FORMAT, theorem="idempotent"),
    Theorem("INV-3.coq-odd", "rounding -x in the format is minus rounding x, for every real x", (), file=_FORMAT,
            theorem="odd"),
    Theorem("INV-3.coq-stays-in-range", "what is at most 2^31 (2 - 2^-9) in size rounds in the format to at most that, "
            "for every real number", (), file=_FORMAT, theorem="stays_in_range"),
    Theorem("INV-3.coq-largest", "2^31 (2 - 2^-9) is a number of the format", (), file=_FORMAT,
            theorem="largest_in_format"),
    Theorem("INV-3.coq-constants", "MAX_FINITE, OVERFLOW, MIN_NORMAL and UNIT_ROUNDOFF, as they run, are 2^31 (2 - "
            "2^-9), 2^31 (2 - 2^-10), 2^-30 and 2^-10, and INFINITY_CODE is the 0x7E00 of the theorems", (),
            file=_FORMAT, theorem="constants"),
    Theorem("INV-3.coq-nearest-even", "the rounding to an integer in the theorems' definition of encode, by floor and "
            "remainder, is Flocq's rounding to nearest, ties to even, for every rational", (), file=_FORMAT,
            theorem="nearest_even_is"),
    Theorem("INV-3.coq-decode", "the value of every finite code is a number of the format, at most 2^31 (2 - 2^-9) in size",
            _DECODERS, file=_FORMAT, theorem="decode_in_format", counterparts=_VALUE),
    Theorem("INV-3.coq-decode-all", "every number of the format of at most 2^31 (2 - 2^-9) in size is the value of a "
            "finite code", _DECODERS, file=_CODEC, theorem="codes_reach_all", counterparts=_VALUE),
    Theorem("INV-3.coq-decode-rises", "of two finite codes without sign the larger has the larger value", _DECODERS,
            file=_CODEC, theorem="decode_rises", counterparts=_VALUE),
    Theorem("INV-3.coq-round-trip", "encoding the value of a finite code gives the code, for every one but that of -0",
            (gf16.encode, gf16.decode), file=_CODEC, theorem="encode_decode", counterparts=(ENCODE, DECODE)),
)  # fmt: skip
