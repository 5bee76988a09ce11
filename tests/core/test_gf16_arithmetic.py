"""GF16 arithmetic on Python ints: IEEE's cases one by one, and random codes against exact fractions."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from karat.core.array_ops import ARRAY
from karat.core.formulas import gf16
from karat.core.formulas import gf16_arithmetic as arithmetic
from karat.core.formulas.gf16_arithmetic import add, fma, less, multiply, next_down, next_up, of_float64, to_float64
from karat.invariants import gf16_sweeps
from karat.invariants.gf16_sweeps import exact_fma

INF, NAN, ONE, LARGEST, SMALLEST = 0x7E00, 0x7F00, 0x3E00, 0x7DFF, 0x0001
MINUS = 0x8000
codes = st.one_of(
    st.integers(0, 0xFFFF), st.sampled_from([0, MINUS, INF, INF | MINUS, NAN, ONE, LARGEST, SMALLEST, 0x200])
)


def code(x: float) -> int:
    return of_float64(struct.unpack("<Q", struct.pack("<d", x))[0])


def number(a: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", to_float64(a)))[0]
    return value


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [
        (ONE, ONE | MINUS, 0), (ONE | MINUS, ONE, 0), (0, MINUS, 0), (MINUS, 0, 0), (MINUS, MINUS, MINUS), (0, 0, 0),
        (INF, INF, INF), (INF, INF | MINUS, NAN), (INF | MINUS, LARGEST, INF | MINUS), (NAN, ONE, NAN), (0xFE01, 0, NAN),
        (LARGEST, LARGEST, INF), (LARGEST, code(2.0**20), LARGEST), (LARGEST, code(2.0**21), INF),
        (SMALLEST, SMALLEST, 2), (0x1FF, 1, 0x200), (ONE, code(2.0**-10), ONE), (ONE | 1, code(2.0**-10), ONE | 2),
    ],
)  # fmt: skip
def test_sums(a: int, b: int, total: int) -> None:
    assert add(a, b) == total and add(b, a) == total


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        (0, INF, NAN), (MINUS, INF, NAN), (INF, INF | MINUS, INF | MINUS), (0, ONE | MINUS, MINUS), (NAN, 0, NAN),
        (LARGEST, LARGEST, INF), (SMALLEST, SMALLEST, 0), (SMALLEST, SMALLEST | MINUS, MINUS),
        (SMALLEST, code(0.5), 0), (3, code(0.5), 2), (0x200, code(0.5), 0x100), (code(3.0), code(5.0), code(15.0)),
    ],
)  # fmt: skip
def test_products(a: int, b: int, result: int) -> None:
    assert multiply(a, b) == result and multiply(b, a) == result


@pytest.mark.parametrize(
    ("a", "b", "c", "result"),
    [
        (0, INF, ONE, NAN), (0, INF, NAN, NAN), (INF, ONE, INF | MINUS, NAN), (INF, ONE, INF, INF),
        (LARGEST, LARGEST, INF | MINUS, INF | MINUS), (LARGEST, code(2.0), LARGEST | MINUS, LARGEST),
        (ONE, 0, MINUS, 0), (ONE, MINUS, MINUS, MINUS), (ONE, ONE, ONE | MINUS, 0), (0, LARGEST, SMALLEST, SMALLEST),
        (SMALLEST, SMALLEST, 0, 0), (SMALLEST, SMALLEST, MINUS, 0), (SMALLEST, SMALLEST | MINUS, 0, MINUS),
    ],
)  # fmt: skip
def test_fused(a: int, b: int, c: int, result: int) -> None:
    assert fma(a, b, c) == result and fma(b, a, c) == result


def test_the_product_is_not_rounded_before_the_sum() -> None:
    a, square = ONE | 1, multiply(ONE | 1, ONE | 1)  # (1 + u)^2 = 1 + 2 u + u^2, of which u^2 = 2^-18 is rounded off
    assert number(fma(a, a, square ^ MINUS)) == 2.0**-18 and add(square, square ^ MINUS) == 0


@given(codes, codes, codes)
def test_random_codes_against_fractions(a: int, b: int, c: int) -> None:
    assert fma(a, b, c) == exact_fma(a, b, c)
    assert add(a, b) == exact_fma(a, ONE, b)
    assert multiply(a, b) == exact_fma(a, b, (a ^ b) & MINUS)
    assert arithmetic.subtract(a, b) == exact_fma(b, ONE | MINUS, a)


@given(codes, codes, st.integers(-2, 2))
def test_cancellation_against_fractions(a: int, b: int, ulps: int) -> None:
    c = (multiply(a, b) ^ MINUS) + ulps & 0xFFFF
    assert fma(a, b, c) == exact_fma(a, b, c)


@given(st.floats())
@example(1 + 2.0**-10 + 2.0**-40)
@example(float(gf16.OVERFLOW))
@example(math.nextafter(float(gf16.OVERFLOW), 0))
@example(2.0**-40)
@example(math.nextafter(2.0**-40, 1))
@example(5e-324)
@example(-0.0)
def test_float64_is_rounded_once(x: float) -> None:
    assert code(x) == gf16.encode(x)


def test_by_way_of_float32_a_double_is_rounded_twice() -> None:
    x = 1 + 2.0**-10 + 2.0**-40
    single = struct.unpack("<I", struct.pack("<f", x))[0]
    assert code(x) == gf16.encode(x) == ONE | 1 and arithmetic.of_float32(single) == ONE


@given(codes)
def test_neighbours_and_order(a: int) -> None:
    x = gf16.decode(a)
    if math.isnan(x):
        assert next_up(a) == next_down(a) == NAN and not less(a, a) and not arithmetic.equal(a, a)
        return
    assert arithmetic.equal(a, a) and less(a, next_up(a)) == (a != INF) and less(next_down(a), a) == (a != INF | MINUS)
    assert gf16.decode(next_down(next_up(a))) == x or a == INF
    assert arithmetic.absolute(a) == gf16.encode(abs(x)) and gf16.decode(arithmetic.negate(a)) == -x


def test_the_seeds_interval_is_not_closed_and_its_limit_is_no_number() -> None:
    assert gf16.decode(code(65504.0)) == 65536 and gf16.decode(add(code(65472.0), code(65472.0))) == 130944


def test_arrays_and_ints_agree() -> None:
    a, b, c = (np.array(x) for x in zip(*product((0, 1, 0x1FF, ONE, 0xBE01, LARGEST, INF, NAN), repeat=3), strict=True))
    for function, inputs in ((add, (a, b)), (multiply, (a, b)), (fma, (a, b, c)), (less, (a, b))):
        on_arrays = function(*inputs, ARRAY)
        assert on_arrays.tolist() == [function(*map(int, each)) for each in zip(*inputs, strict=True)]


def test_the_sweeps_oracle_is_exact_where_float64_is_not() -> None:
    large, tiny = np.array([2.0**31, 2.0**31, 2.0**31 * (1 + 2.0**-10)]), np.array([2.0**-39, -(2.0**-39), 2.0**-39])
    assert (large + tiny == large).all()  # float64 loses the tiny number; the third sum lies above a tie
    expected = [float(gf16.decode(gf16.encode(Fraction(x) + Fraction(y)))) for x, y in zip(large, tiny, strict=True)]
    assert gf16_sweeps.rounded_sum(large, tiny).tolist() == expected
    assert expected[2] == 2.0**31 * (1 + 2.0**-9) and gf16_sweeps.nearest(large + tiny)[2] == 2.0**31


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blocks_hold_every_tuple_once(size: int) -> None:
    if size == 1:
        seen = np.concatenate([gf16_sweeps.tuples(block, 1)[0] for block in range((1 << 16) // gf16_sweeps.BLOCK)])
        assert sorted(seen.tolist()) == list(range(1 << 16))
        return
    last = (1 << 16 * size) // gf16_sweeps.BLOCK - 1
    blocks = [gf16_sweeps.tuples(block, size) for block in (0, 1, 12345, last)]
    for parts in blocks:
        assert all(len(part) == gf16_sweeps.BLOCK and part.min() >= 0 and part.max() <= 0xFFFF for part in parts)
        assert all(len(set(part.tolist())) > gf16_sweeps.BLOCK // 2 for part in parts)
    tuples = {t for parts in blocks for t in zip(*(part.tolist() for part in parts), strict=True)}
    assert len(tuples) == len(blocks) * gf16_sweeps.BLOCK
