"""The laws of GF16 arithmetic that are decided outright: conversions, unary operations, order, algebra, and what fails.

Sums, products and fma against the exact result are in gf16_sweeps.py; the codec that the trainer runs, and the safe
domain, in inv03_gf16_safe_domain.py. All of them are obligations of INV-3.
"""

from __future__ import annotations

import itertools
import struct
from random import Random
from typing import Any

import numpy as np

from karat.core.array_ops import ARRAY
from karat.core.formulas import gf16, gf16_arithmetic
from karat.core.obligation import BitLaw, Checked, Exact, Exhaustive, Obligation
from karat.core.ops import FLOAT
from karat.invariants.gf16_reference import numbers

LANE = 64
ONE, MINUS_ZERO = 0x3E00, 0x8000
SEED_LIMIT = 65504
"""The seed's IGLA_GF16_Precision.v: [-65504, 65504] is closed under +, -, * ("algebraically consistent")."""


def _gf16(z3: Any, term: Any) -> Any:
    return z3.fpBVToFP(z3.Extract(15, 0, term), z3.FPSort(6, 10))


def _is_code_of(z3: Any, code: Any, number: Any) -> Any:
    """The 64-bit lane holds the code of the number, NAN_CODE for NaN, and nothing above."""
    right = z3.If(z3.fpIsNaN(number), z3.BitVecVal(gf16.NAN_CODE, 16), z3.fpToIEEEBV(number))
    return code == z3.ZeroExt(LANE - 16, right)


def _double(z3: Any, bits: Any) -> Any:
    return z3.fpBVToFP(bits, z3.Float64())


def _float32(z3: Any, bits: Any) -> Any:
    return z3.fpBVToFP(z3.Extract(31, 0, bits), z3.Float32())


def _from_double(v: Any, z3: Any, of_float64: Any) -> Any:
    rounded = z3.fpFPToFP(z3.RNE(), _double(z3, v.bits.e), z3.FPSort(6, 10))
    return _is_code_of(z3, of_float64(v.bits, v.ops).e, rounded)


def _from_single(v: Any, z3: Any, of_float32: Any) -> Any:
    rounded = z3.fpFPToFP(z3.RNE(), _float32(z3, v.bits.e), z3.FPSort(6, 10))
    return _is_code_of(z3, of_float32(v.bits, v.ops).e, rounded)


def _to_double(v: Any, z3: Any, to_float64: Any) -> Any:
    bits = to_float64(v.a, v.ops).e
    value = z3.fpFPToFP(z3.RNE(), _gf16(z3, v.a.e), z3.Float64())
    quiet = z3.Extract(51, 51, bits) == 1
    return z3.If(z3.fpIsNaN(value), z3.And(z3.fpIsNaN(_double(z3, bits)), quiet), bits == z3.fpToIEEEBV(value))


def _to_single(v: Any, z3: Any, to_float32: Any) -> Any:
    bits = to_float32(v.a, v.ops).e
    value = z3.fpFPToFP(z3.RNE(), _gf16(z3, v.a.e), z3.Float32())
    quiet = z3.Extract(22, 22, bits) == 1
    exact = bits == z3.ZeroExt(LANE - 32, z3.fpToIEEEBV(value))
    return z3.If(z3.fpIsNaN(value), z3.And(z3.fpIsNaN(_float32(z3, bits)), quiet), exact)


def _ordered(v: Any, z3: Any, less: Any, equal: Any) -> Any:
    a, b = _gf16(z3, v.a.e), _gf16(z3, v.b.e)
    return z3.And(less(v.a, v.b, v.ops).e == z3.fpLT(a, b), equal(v.a, v.b, v.ops).e == z3.fpEQ(a, b))


def _run_ordered(v: Any, less: Any, equal: Any) -> Any:
    above = v.ops.where(less(v.a, v.b, v.ops), 2, v.ops.constant(0, v.a))
    return above + v.ops.where(equal(v.a, v.b, v.ops), 1, v.ops.constant(0, v.a))


def _sum(v: Any, z3: Any, add: Any) -> Any:
    number = z3.fpAdd(z3.RNE(), _gf16(z3, v.a.e), _gf16(z3, v.b.e))
    return _is_code_of(z3, add(v.a, v.b, v.ops).e, number)


def _commutes(v: Any, z3: Any, operation: Any) -> Any:
    return operation(v.a, v.b, v.ops) == operation(v.b, v.a, v.ops)


def _subtracts(v: Any, z3: Any, subtract: Any, add: Any) -> Any:
    return subtract(v.a, v.b, v.ops) == add(v.a, v.b ^ 0x8000, v.ops)


def _run_subtract(v: Any, subtract: Any, add: Any) -> Any:
    return subtract(v.a, v.b, v.ops)


def _pair(random: Random) -> dict[str, int]:
    return {"a": random.getrandbits(16), "b": random.getrandbits(16)}


def _code(random: Random) -> dict[str, int]:
    return {"a": random.getrandbits(16)}


def _double_bits(random: Random) -> dict[str, int]:
    exponent = random.choice([random.randint(0, 2047), random.randint(980, 1060)])
    return {"bits": random.getrandbits(1) << 63 | exponent << 52 | random.getrandbits(52)}


def _run_one(v: Any, function: Any) -> Any:
    return function(v.a, v.ops)


def _run_bits(v: Any, function: Any) -> Any:
    return function(v.bits, v.ops)


def _run_two(v: Any, function: Any) -> Any:
    return function(v.a, v.b, v.ops)


# -- every code -------------------------------------------------------------------------------------------------------

CODES = np.arange(1 << 16, dtype=np.int64)


def _first(wrong: Any, what: str) -> str | None:
    return f"{what} at {int(wrong.argmax()):#06x}" if wrong.any() else None


def _signs(negate: Any, absolute: Any, is_nan: Any) -> Checked:
    """-a and |a| have the negated and the absolute number (a zero its sign, a NaN its payload); is_nan finds the NaNs."""
    values = numbers()
    nan, negative = np.isnan(values), CODES >= 0x8000
    minus, size = negate(CODES), absolute(CODES)
    checks = {
        "-a is no code": (minus < 0) | (minus > 0xFFFF) | (size < 0) | (size > 0xFFFF),
        "-a is wrong": (values[minus & 0xFFFF] != -values) & ~nan,
        "|a| is wrong": (values[size & 0xFFFF] != np.abs(values)) & ~nan,
        "the sign of -a is not turned": (minus >= 0x8000) == negative,
        "the sign of |a| is not cleared": size >= 0x8000,
        "-a changes the payload": (minus & 0x7FFF) != (CODES & 0x7FFF),
        "|a| changes the payload": (size & 0x7FFF) != (CODES & 0x7FFF),
        "is_nan is wrong": is_nan(CODES) != nan,
    }
    return Checked(len(CODES), next((f for what, wrong in checks.items() if (f := _first(wrong, what))), None))


def _neighbours(next_up: Any, next_down: Any) -> Checked:
    """The next number up and down among the exact numbers of all codes; a step to zero keeps the sign it comes from."""
    values = numbers()
    nan = np.isnan(values)
    line = np.unique(values[~nan])
    place = np.searchsorted(line, np.where(nan, 0.0, values))
    for name, step, by in (("up", next_up, 1), ("down", next_down, -1)):
        codes = step(CODES, ARRAY)
        expected = line[np.clip(place + by, 0, len(line) - 1)]
        expected = np.where(expected == 0, np.copysign(0.0, values), expected)
        got = values[codes & 0xFFFF]
        right = np.where(nan, codes == gf16.NAN_CODE, got.view(np.int64) == expected.view(np.int64))
        if (failure := _first(~right | (codes >> 16 != 0), f"the next number {name} is wrong")) is not None:
            return Checked(0, failure)
    return Checked(2 * len(CODES))


def _round_trips(of_float32: Any, to_float32: Any, of_float64: Any, to_float64: Any) -> Checked:
    """Every code through float32 and float64 and back; NaN comes back as NAN_CODE; both on NumPy and on Python ints."""
    same = np.where((CODES & 0x7FFF) > gf16.INFINITY_CODE, gf16.NAN_CODE, CODES)
    values = numbers()
    singles, doubles = to_float32(CODES, ARRAY), to_float64(CODES, ARRAY)
    as_single = singles.astype(np.uint32).view(np.float32).astype(np.float64)
    checks = {
        "float32 is not the number": (as_single != values) & ~(np.isnan(values) & np.isnan(as_single)),
        "float64 is not the number": (doubles.view(np.float64) != values)
        & ~(np.isnan(values) & np.isnan(doubles.view(np.float64))),
        "float32 does not come back": of_float32(singles, ARRAY) != same,
        "float64 does not come back": of_float64(doubles, ARRAY) != same,
    }
    failure = next((f for what, wrong in checks.items() if (f := _first(wrong, what))), None)
    for code in range(0, 1 << 16, 17):
        back = of_float64(to_float64(code, FLOAT), FLOAT), of_float32(to_float32(code, FLOAT), FLOAT)
        if back != (same[code], same[code]):
            failure = failure or f"on Python ints {code:#06x} comes back as {back[0]:#06x} and {back[1]:#06x}"
    return Checked(4 * len(CODES) + (1 << 16) // 17, failure)


def _units(add: Any, multiply: Any, fma: Any) -> Checked:
    """a + (-0) = a, a · 1 = a, fma(a, 1, -0) = a; a + 0 = a but for -0, which becomes 0; a + (-a) = 0 for finite a."""
    same = np.where((CODES & 0x7FFF) > gf16.INFINITY_CODE, gf16.NAN_CODE, CODES)
    finite = (CODES & 0x7FFF) < gf16.INFINITY_CODE
    zeros, ones, minus_zeros = CODES * 0, CODES * 0 + ONE, CODES * 0 + MINUS_ZERO
    checks = {
        "a + (-0) is not a": add(CODES, minus_zeros, ARRAY) != same,
        "a + 0 is not a": add(CODES, zeros, ARRAY) != np.where(CODES == MINUS_ZERO, 0, same),
        "a · 1 is not a": multiply(CODES, ones, ARRAY) != same,
        "a · (-1) is not -a": multiply(CODES, ones | 0x8000, ARRAY)
        != np.where(same == gf16.NAN_CODE, same, same ^ 0x8000),
        "fma(a, 1, -0) is not a": fma(CODES, ones, minus_zeros, ARRAY) != same,
        "a - a is not 0": add(CODES, CODES ^ 0x8000, ARRAY) != np.where(finite, 0, gf16.NAN_CODE),
        "a + a is not 2 a": add(CODES, CODES, ARRAY) != multiply(CODES, ones + 512, ARRAY),
        "0 · a is not 0": multiply(zeros, CODES, ARRAY) != np.where(finite, CODES & 0x8000, gf16.NAN_CODE),
    }
    return Checked(8 * len(CODES), next((f for what, wrong in checks.items() if (f := _first(wrong, what))), None))


# -- what is false ----------------------------------------------------------------------------------------------------


def _associates(add: Any) -> Checked:
    """(a + b) + c = a + (b + c) for the finite codes of a grid; and its first counterexample."""
    codes = [field << 9 for field in range(20, 45, 4)] + [ONE | 1, ONE | 0x8000]
    for a, b, c in itertools.product(codes, codes, codes):
        left, right = add(add(a, b), c), add(a, add(b, c))
        if left != right:
            numbers = " + ".join(str(float(gf16.decode(code))) for code in (a, b, c))
            return Checked(0, f"{numbers} is {float(gf16.decode(left))!r} or {float(gf16.decode(right))!r}")
    return Checked(len(codes) ** 3)


def _closed(add: Any) -> Checked:
    """a + a stays in [-65504, 65504] for every code that lies in it."""
    values = numbers()
    inside = CODES[np.abs(values) <= SEED_LIMIT]
    doubled = values[add(inside, inside, ARRAY)]
    outside = ~(np.abs(doubled) <= SEED_LIMIT)
    if not outside.any():
        return Checked(len(inside))
    value, total = float(values[inside][outside][0]), float(doubled[outside][0])
    return Checked(0, f"{value!r} + {value!r} = {total!r}")


def _is_a_number(limit: float) -> bool:
    """The limit is a GF16 number: conversion there and back gives it again."""
    bits = struct.unpack("<Q", struct.pack("<d", limit))[0]
    return bool(gf16.decode(gf16_arithmetic.of_float64(bits)) == limit)


def _by_way_of_float32(value: float) -> bool:
    """float64 -> float32 -> GF16 gives what float64 -> GF16 does."""
    double = struct.unpack("<Q", struct.pack("<d", value))[0]
    single = struct.unpack("<I", struct.pack("<f", value))[0]
    return bool(gf16_arithmetic.of_float64(double) == gf16_arithmetic.of_float32(single))


_TWO = {"a": 16, "b": 16}

OBLIGATIONS: tuple[Obligation, ...] = (
    BitLaw("INV-3.of-float64", "conversion from float64 is IEEE rounding to FPSort(6, 10), once: all 2^64 inputs",
           (gf16_arithmetic.of_float64,), variables={"bits": 64}, lane=LANE, show=_from_double, run=_run_bits,
           sample=_double_bits),
    BitLaw("INV-3.of-float32", "conversion from float32 is IEEE rounding, once, sign and canonical NaN included",
           (gf16_arithmetic.of_float32,), variables={"bits": 32}, lane=LANE, show=_from_single, run=_run_bits,
           sample=lambda random: {"bits": random.getrandbits(32)}),
    BitLaw("INV-3.to-float64", "conversion to float64 is exact: every code", (gf16_arithmetic.to_float64,), variables={"a": 16},
           lane=LANE, show=_to_double, run=_run_one, sample=_code),
    BitLaw("INV-3.to-float32", "conversion to float32 is exact: every code", (gf16_arithmetic.to_float32,), variables={"a": 16},
           lane=LANE, show=_to_single, run=_run_one, sample=_code),
    BitLaw("INV-3.order", "less and equal are IEEE's: all pairs, zeros, infinities and NaN included",
           (gf16_arithmetic.less, gf16_arithmetic.equal), variables=_TWO, lane=LANE, show=_ordered, run=_run_ordered,
           sample=_pair),
    BitLaw("INV-3.mul-commutes", "multiplication commutes: all pairs", (gf16_arithmetic.multiply,), variables=_TWO, lane=LANE,
           show=_commutes, run=_run_two, sample=_pair),
    BitLaw("INV-3.subtract", "a - b is a + (-b): all pairs", (gf16_arithmetic.subtract, gf16_arithmetic.add),
           variables=_TWO, lane=LANE, show=_subtracts, run=_run_subtract, sample=_pair),
    Exhaustive("INV-3.signs", "negate and absolute turn and clear the sign of all 65,536 codes and nothing else; is_nan finds "
               "the NaNs", (gf16_arithmetic.negate, gf16_arithmetic.absolute, gf16_arithmetic.is_nan), check=_signs,
               rivals={"all signs cleared": (gf16_arithmetic.absolute, gf16_arithmetic.absolute, gf16_arithmetic.is_nan),
                       "infinity a NaN": (gf16_arithmetic.negate, gf16_arithmetic.absolute, lambda a: (a & 0x7FFF) >= 0x7E00)}),
    Exhaustive("INV-3.neighbours", "next_up and next_down are the neighbours among the exact numbers of all 65,536 codes",
               (gf16_arithmetic.next_up, gf16_arithmetic.next_down), check=_neighbours,
               rivals={"the code plus one": (lambda a, ops: a + 1, gf16_arithmetic.next_down),
                       "up for down": (gf16_arithmetic.next_up, gf16_arithmetic.next_up)}),
    Exhaustive("INV-3.round-trips", "every code comes back from float32 and from float64, which hold its exact number",
               (gf16_arithmetic.of_float32, gf16_arithmetic.to_float32, gf16_arithmetic.of_float64, gf16_arithmetic.to_float64),
               check=_round_trips,
               rivals={"no sign": (gf16_arithmetic.of_float32, gf16_arithmetic.to_float32,
                                   lambda bits, ops: gf16_arithmetic.of_float64(bits, ops) & 0x7FFF,
                                   gf16_arithmetic.to_float64)}),
    Exhaustive("INV-3.units", "-0 is the unit of +, 1 of ·, a - a = +0, a + a = 2 · a, 0 · a = ±0: all 65,536 codes",
               (gf16_arithmetic.add, gf16_arithmetic.multiply, gf16_arithmetic.fma), check=_units,
               rivals={"-0 + -0 = 0": (lambda a, b, ops: ops.where(a & b == MINUS_ZERO, 0, gf16_arithmetic.add(a, b, ops)),
                                       gf16_arithmetic.multiply, gf16_arithmetic.fma)}),
    BitLaw("INV-3.add", "the sum of two codes is IEEE's in FPSort(6, 10): all 2^32 pairs, without enumeration",
           (gf16_arithmetic.add,), variables=_TWO, lane=LANE, show=_sum, run=_run_two, sample=_pair, slow=True),
    Exhaustive("INV-3.add-associates", "addition is associative", (gf16_arithmetic.add,), check=_associates, rivals={},
               must_fail=True),
    Exhaustive("INV-3.seed-closure", "[-65504, 65504] is closed under addition (the seed's gf16_algebraically_consistent)",
               (gf16_arithmetic.add,), check=_closed, rivals={}, must_fail=True),
    Exact("INV-3.seed-limit", "65504, the seed's largest number, is a GF16 number (it needs 10 fraction bits, and rounds to "
          "65536)", (gf16_arithmetic.of_float64,), show=_is_a_number, at=65504.0, not_at=(65472.0, 65536.0), must_fail=True),
    Exact("INV-3.double-rounding", "conversion by way of float32 is conversion (1 + 2^-10 + 2^-40 is above a tie, and float32 "
          "puts it on the tie)", (gf16_arithmetic.of_float64, gf16_arithmetic.of_float32), show=_by_way_of_float32,
          at=1 + 2.0**-10 + 2.0**-40, not_at=(1 + 2.0**-10, 1 + 2.0**-9), must_fail=True),
)  # fmt: skip
