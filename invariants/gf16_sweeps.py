"""GF16 arithmetic against an oracle of its own: all pairs of codes in blocks, all pairs and triples of edge cases.

The oracle computes in float64 and rounds once. A product of two GF16 numbers has 20 bits and a sum's exact residual
is a float64 (Knuth's two-sum: no overflow, no underflow in this range), so s + e is the exact result. s is rounded
to odd: when e is not zero and s is even, s moves by one bit towards e. A number of 53 bits rounded to odd and then to
nearest in 10 bits is the exact one rounded once, since 53 >= 10 + 2 (Boldo and Melquiond, 2008); no double rounding is
argued away. The last rounding is the processor's own: + and - of a power of two whose unit is that of the result.
The oracle itself is compared with exact fractions on the edge cases (INV-3.edges-exact).
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from karat.core.array_ops import ARRAY
from karat.core.formulas import gf16, gf16_arithmetic
from karat.core.obligation import Checked, Exhaustive, Obligation, Sweep
from karat.invariants.gf16_reference import numbers

BLOCK = 1 << 13
"""Cases in a block: few enough for the arrays to stay in the cache."""
SEED = 20_260_301


def rounded_sum(x: Any, y: Any) -> Any:
    """The float64 that equals the GF16 number nearest to x + y, the exact sum of two float64."""
    with np.errstate(invalid="ignore"):  # infinities and NaN go their way through the residual
        s = x + y
        back = s - x
        residual = (x - (s - back)) + (y - back)
    bits = s.view(np.int64)
    inexact = (residual != 0) & np.isfinite(residual) & ((bits & 1) == 0)
    towards = np.where((residual > 0) == (s > 0), 1, -1)
    return nearest(np.where(inexact, bits + towards, bits).view(np.float64))


def nearest(x: Any) -> Any:
    """The float64 that equals the GF16 number nearest to x, ties to even, by the processor's rounding."""
    size = np.abs(x)
    field = np.clip(size.view(np.int64) >> 52, 1023 - 30, 1023 + 33)
    unit = ((field + 43) << 52).view(np.float64)  # 2^52 GF16 units in the last place of x
    with np.errstate(invalid="ignore"):
        rounded = (size + unit) - unit
    return np.copysign(np.where(rounded > float(gf16.MAX_FINITE), math.inf, rounded), x)


def _disagreement(codes: Any, expected: Any, inputs: tuple[Any, ...]) -> str | None:
    """The first case in which the codes are not those of the expected numbers, with its inputs."""
    got = numbers()[codes & 0xFFFF]
    same = (got.view(np.int64) == expected.view(np.int64)) & (codes >> 16 == 0)
    right = same | (np.isnan(expected) & (codes == gf16.NAN_CODE))
    if right.all():
        return None
    k = int(right.argmin())
    shown = ", ".join(f"{int(codes_in[k]):#06x}" for codes_in in inputs)
    return f"({shown}) gives {int(codes[k]):#06x} = {got[k]!r}, exactly {float(expected[k])!r}"


def _sum_disagrees(add: Any, a: Any, b: Any) -> str | None:
    values = numbers()
    return _disagreement(add(a, b, ARRAY), rounded_sum(values[a], values[b]), (a, b))


def _product_disagrees(multiply: Any, a: Any, b: Any) -> str | None:
    values = numbers()
    with np.errstate(invalid="ignore"):
        expected = nearest(values[a] * values[b])
    return _disagreement(multiply(a, b, ARRAY), expected, (a, b))


def _fma_disagrees(fma: Any, a: Any, b: Any, c: Any) -> str | None:
    values = numbers()
    with np.errstate(invalid="ignore"):
        product = values[a] * values[b]
    return _disagreement(fma(a, b, c, ARRAY), rounded_sum(product, values[c]), (a, b, c))


# -- blocks ---------------------------------------------------------------------------------------------------------


def tuples(block: int, size: int) -> tuple[Any, ...]:
    """A block of `size`-tuples of codes. The blocks 0, 1, … together hold every tuple once, each in a mixed order.

    Multiplying by an odd number and xor with a right shift are one to one on integers of 16 · size bits.
    """
    bits = 16 * size
    n = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.int64)
    for odd in (0x9E3779B97F4B, 0xC2B2AE3D27D5):
        n = (n * odd) & ((1 << bits) - 1)
        n = n ^ (n >> (bits // 2))
    return tuple((n >> (16 * place)) & 0xFFFF for place in range(size))


def _add_block(block: int, add: Any) -> Checked:
    return Checked(BLOCK, _sum_disagrees(add, *tuples(block, 2)))


def _multiply_block(block: int, multiply: Any) -> Checked:
    return Checked(BLOCK, _product_disagrees(multiply, *tuples(block, 2)))


def _fma_block(block: int, fma: Any) -> Checked:
    return Checked(BLOCK, _fma_disagrees(fma, *tuples(block, 3)))


def _order_block(block: int, add: Any) -> Checked:
    """add commutes, and does not fall when its first argument rises by one number."""
    a, b = tuples(block, 2)
    sums, higher = add(a, b, ARRAY), add(gf16_arithmetic.next_up(a, ARRAY), b, ARRAY)
    commuted = sums == add(b, a, ARRAY)
    falls = gf16_arithmetic.less(higher, sums, ARRAY)
    wrong = ~commuted | falls
    if not wrong.any():
        return Checked(BLOCK)
    k = int(wrong.argmax())
    return Checked(BLOCK, f"at ({int(a[k]):#06x}, {int(b[k]):#06x})")


# -- edge cases -----------------------------------------------------------------------------------------------------


def edge_codes(fractions: tuple[int, ...], exponents: tuple[int, ...]) -> Any:
    """Both signs of every given exponent field with every given fraction."""
    codes = [sign | field << 9 | f for sign in (0, 0x8000) for field in exponents for f in fractions]
    return np.array(codes, dtype=np.int64)


ALL_EXPONENTS = tuple(range(64))
PAIRS = edge_codes((0, 1, 2, 255, 256, 257, 510, 511), ALL_EXPONENTS)
TRIPLES = edge_codes((0, 1, 256, 511), (0, 1, 2, 16, 21, 22, 29, 30, 31, 32, 41, 61, 62, 63))
FEW = np.concatenate([edge_codes((0, 511), (0, 1, 22, 31, 62, 63)), edge_codes((1,), (0, 31, 63))])


ONE = 31 << 9


def _all_pairs(codes: Any) -> tuple[Any, Any]:
    return np.repeat(codes, len(codes)), np.tile(codes, len(codes))


def _first_of(disagrees: Any, function: Any, *codes: Any) -> str | None:
    """The first case in which the function disagrees, looked for block by block: arrays that fit in the cache."""
    for start in range(0, len(codes[0]), BLOCK):
        failure: str | None = disagrees(function, *(x[start : start + BLOCK] for x in codes))
        if failure is not None:
            return failure
    return None


def _add_edges(add: Any) -> Checked:
    a, b = _all_pairs(PAIRS)
    return Checked(len(a), _first_of(_sum_disagrees, add, a, b))


def _multiply_edges(multiply: Any) -> Checked:
    a, b = _all_pairs(PAIRS)
    return Checked(len(a), _first_of(_product_disagrees, multiply, a, b))


def _fma_edges(fma: Any) -> Checked:
    """All triples of edge cases; then products that the addend cancels up to a few units in the last place: of the edge
    cases, and of every two significands."""
    pairs = _all_pairs(TRIPLES)
    a, b = (np.repeat(x, len(TRIPLES)) for x in pairs)
    failure, cases = _first_of(_fma_disagrees, fma, a, b, np.tile(TRIPLES, len(pairs[0]))), len(a)
    positive = numbers()[: gf16.INFINITY_CODE + 1]
    for a, b in (_all_pairs(TRIPLES[TRIPLES % 0x8000 < gf16.INFINITY_CODE]), _all_pairs(ONE + np.arange(512))):
        product = nearest(np.abs(numbers()[a] * numbers()[b]))
        place = np.searchsorted(positive, product)
        for ulps in (-1, 0, 1):
            c = np.clip(place + ulps, 0, gf16.INFINITY_CODE) | ((a ^ b ^ 0x8000) & 0x8000)
            failure = failure or _first_of(_fma_disagrees, fma, a, b, c)
            cases += len(a)
    return Checked(cases, failure)


def exact_fma(a: int, b: int, c: int) -> int:
    """The code of a · b + c by exact fractions and the reference codec; IEEE's cases spelt out."""
    x, y, z = (gf16.decode(code) for code in (a, b, c))
    negative = (a ^ b) >> 15
    if any(isinstance(v, float) and math.isnan(v) for v in (x, y, z)):
        return gf16.NAN_CODE
    if any(isinstance(v, float) and math.isinf(v) for v in (x, y)):
        if 0 in (x, y) or (isinstance(z, float) and math.isinf(z) and c >> 15 != negative):
            return gf16.NAN_CODE
        return negative << 15 | gf16.INFINITY_CODE
    if isinstance(z, float) and math.isinf(z):
        return c
    total = Fraction(x) * Fraction(y) + Fraction(z)
    if total == 0:
        return 0x8000 if negative and c >> 15 else 0
    return gf16.encode(total)


@functools.cache
def _exact_triples() -> dict[tuple[int, int, int], int]:
    """(a, b, c) -> the code of a · b + c, for every triple of FEW, which holds 1 and both zeros: sums and products too."""
    return {triple: exact_fma(*triple) for triple in itertools.product(FEW.tolist(), repeat=3)}


def _exactly(add: Any, multiply: Any, fma: Any) -> Checked:
    """On Python ints: the running functions, and the oracle of the sweeps, against exact fractions."""
    values = numbers()
    exact = _exact_triples()
    codes = FEW.tolist()
    for a, b in itertools.product(codes, codes):
        if add(a, b) != exact[a, ONE, b]:
            return Checked(0, f"{a:#06x} + {b:#06x} gives {add(a, b):#06x}, exactly {exact[a, ONE, b]:#06x}")
        zero = (a ^ b) & 0x8000
        if multiply(a, b) != exact[a, b, zero]:
            return Checked(0, f"{a:#06x} · {b:#06x} gives {multiply(a, b):#06x}, exactly {exact[a, b, zero]:#06x}")
    for (a, b, c), expected in exact.items():
        if fma(a, b, c) != expected:
            return Checked(0, f"fma({a:#06x}, {b:#06x}, {c:#06x}) gives {fma(a, b, c):#06x}, exactly {expected:#06x}")
    a, b, c = (x.ravel() for x in np.meshgrid(FEW, FEW, FEW, indexing="ij"))
    with np.errstate(invalid="ignore"):
        oracle = rounded_sum(values[a] * values[b], values[c])
    return Checked(2 * len(codes) ** 2 + len(a), _disagreement(np.array(list(exact.values())), oracle, (a, b, c)))


# -- rivals ---------------------------------------------------------------------------------------------------------


def _flushed(function: Any) -> Any:
    def flushing(*arguments: Any) -> Any:
        code = function(*arguments)
        return np.where((code & 0x7FFF) < 512, code & 0x8000, code)

    return flushing


def _rounded_twice(a: Any, b: Any, c: Any, ops: Any) -> Any:
    return gf16_arithmetic.add(gf16_arithmetic.multiply(a, b, ops), c, ops)


def _unsigned_zero(a: Any, b: Any, ops: Any) -> Any:
    return gf16_arithmetic.multiply(a, b, ops) & np.where((a & 0x7FFF) == 0, 0x7FFF, 0xFFFF)


def _truncated_operand(a: Any, b: Any, ops: Any) -> Any:
    return gf16_arithmetic.add(a & 0xFFFE, b, ops)


_ADD, _MULTIPLY, _FMA = gf16_arithmetic.add, gf16_arithmetic.multiply, gf16_arithmetic.fma
_ADD_RIVALS = {"subnormal sums flushed": (_flushed(_ADD),), "a bit short": (_truncated_operand,)}
_MULTIPLY_RIVALS = {"subnormal products flushed": (_flushed(_MULTIPLY),), "zero without its sign": (_unsigned_zero,)}
_PAIR_BLOCKS = (1 << 32) // BLOCK

OBLIGATIONS: tuple[Obligation, ...] = (
    Exhaustive("INV-3.add-edges", "the sum of two codes is the exact sum rounded once: every pair of 1,024 edge cases, all "
               "exponents, subnormals, zeros, infinities and NaN among them", (_ADD,), check=_add_edges,
               rivals=_ADD_RIVALS),
    Exhaustive("INV-3.mul-edges", "the product of two codes is the exact product rounded once: every pair of 1,024 edge "
               "cases", (_MULTIPLY,), check=_multiply_edges, rivals=_MULTIPLY_RIVALS),
    Exhaustive("INV-3.fma-edges", "a · b + c is rounded once: every triple of 112 edge cases, and products of every two "
               "significands that the addend cancels but for a few units in the last place", (_FMA,), check=_fma_edges,
               rivals={"the product rounded first": (_rounded_twice,)}),
    Exhaustive("INV-3.edges-exact", "on Python ints sum, product and fma are those of exact fractions, and so is the oracle "
               "of the sweeps: every triple of 30 edge cases", (_ADD, _MULTIPLY, _FMA), check=_exactly,
               rivals={"fma for a sum": (lambda a, b: _FMA(a, b, b), _MULTIPLY, _FMA),
                       "no sign": (_ADD, lambda a, b: _MULTIPLY(a, b) & 0x7FFF, _FMA),
                       "rounded twice": (_ADD, _MULTIPLY, lambda a, b, c: _ADD(_MULTIPLY(a, b), c))}),
    Sweep("INV-3.add-sample", "the sum of two codes is the exact sum rounded once: 2^24 pairs", (_ADD,),
          blocks=_PAIR_BLOCKS, check_block=_add_block, rivals=_ADD_RIVALS, sample_blocks=2048, seed=SEED),
    Sweep("INV-3.mul-sample", "the product of two codes is the exact product rounded once: 2^24 pairs", (_MULTIPLY,),
          blocks=_PAIR_BLOCKS, check_block=_multiply_block, rivals=_MULTIPLY_RIVALS, sample_blocks=2048, seed=SEED),
    Sweep("INV-3.fma-sample", "a · b + c is rounded once: 2^21 triples", (_FMA,), blocks=(1 << 48) // BLOCK,
          check_block=_fma_block, rivals={"the product rounded first": (_rounded_twice,)}, sample_blocks=256, seed=SEED),
    Sweep("INV-3.add-order", "addition commutes, and does not fall when an argument rises: 2^20 pairs", (_ADD,),
          blocks=_PAIR_BLOCKS, check_block=_order_block, sample_blocks=128, seed=SEED,
          rivals={"the first argument a bit short": (_truncated_operand,),
                  "the magnitudes only": (lambda a, b, ops: _ADD(a & 0x7FFF, b & 0x7FFF, ops),)}),
    Sweep("INV-3.add-all", "the sum of two codes is the exact sum rounded once: all 2^32 pairs", (_ADD,),
          blocks=_PAIR_BLOCKS, check_block=_add_block, rivals=_ADD_RIVALS, sample_blocks=2048, seed=SEED, slow=True),
    Sweep("INV-3.mul-all", "the product of two codes is the exact product rounded once: all 2^32 pairs", (_MULTIPLY,),
          blocks=_PAIR_BLOCKS, check_block=_multiply_block, rivals=_MULTIPLY_RIVALS, sample_blocks=2048, seed=SEED,
          slow=True),
)  # fmt: skip
