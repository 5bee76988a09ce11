"""Golden numbers: the field laws, the order, correct rounding and enclosures, against independent arithmetic."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.core.golden import PHI, Golden

rationals = st.fractions(max_denominator=10**6).map(lambda f: f % 1000)
numbers = st.builds(Golden, rationals, rationals)


def decimal(x: Golden) -> Decimal:
    """The value in 200 digits, from the square root of 5 alone."""
    with localcontext() as context:
        context.prec = 200
        phi = (1 + Decimal(5).sqrt()) / 2
        a = Decimal(x.rational.numerator) / x.rational.denominator
        b = Decimal(x.golden.numerator) / x.golden.denominator
        return a + b * phi


def test_phi_is_the_positive_root() -> None:
    assert PHI * PHI == PHI + 1
    assert 1 / PHI == PHI - 1
    assert PHI > 0 > PHI.conjugate()


def test_lucas_numbers_up_to_40() -> None:
    a, b = 2, 3  # L_0, L_2
    for n in range(20):
        assert PHI ** (2 * n) + PHI ** (-2 * n) == a
        a, b = b, 3 * b - a


@given(numbers, numbers, numbers)
def test_field_laws(x: Golden, y: Golden, z: Golden) -> None:
    assert x + y == y + x
    assert x * (y + z) == x * y + x * z
    assert (x * y) * z == x * (y * z)
    assert x - x == 0
    if y:
        assert x / y * y == x


@given(numbers, st.integers(-6, 6), st.integers(-6, 6))
def test_powers(x: Golden, m: int, n: int) -> None:
    if x:
        assert x**m * x**n == x ** (m + n)
        assert x**-1 == 1 / x


@given(numbers, numbers)
def test_order_is_that_of_the_reals(x: Golden, y: Golden) -> None:
    assert (x < y) == (decimal(x) < decimal(y))
    assert (x == y) == (decimal(x) == decimal(y))
    assert (x < y) + (x == y) + (x > y) == 1


@given(numbers)
def test_float_is_correctly_rounded(x: Golden) -> None:
    rounded = float(x)
    error = abs(x - Fraction(rounded))
    for other in (math.nextafter(rounded, math.inf), math.nextafter(rounded, -math.inf)):
        assert error <= abs(x - Fraction(other))


def test_float_of_phi_is_above_phi() -> None:
    assert float(PHI) == 1.618033988749895
    assert Fraction(1.618033988749895) > PHI
    assert Fraction(math.nextafter(1.618033988749895, 0)) < PHI


@given(numbers, st.integers(4, 200))
def test_enclosure_encloses_and_narrows(x: Golden, bits: int) -> None:
    low, high = x.enclosure(bits)
    assert low <= x <= high
    assert high - low <= abs(x.golden) / Fraction(2) ** bits


@given(numbers, numbers)
def test_equal_numbers_have_equal_hashes(x: Golden, y: Golden) -> None:
    if x == y:
        assert hash(x) == hash(y)
    assert hash(Golden(x.rational)) == hash(x.rational)
    assert len({Golden(3), 3, Fraction(3)}) == 1


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_decimal_is_correctly_rounded(a: int, b: int) -> None:
    x = Golden(Fraction(a, b), Fraction(b, 7))
    assert abs(Decimal(x.decimal(12)) - decimal(x)) <= Decimal("0.5e-12")


def test_comparison_with_floats_is_exact() -> None:
    assert PHI != 1.618033988749895
    assert PHI < 1.618033988749895 < PHI + Fraction(1, 10**15)
    assert math.inf > PHI and -math.inf < PHI
    assert not math.nan > PHI and not math.nan < PHI and math.nan != PHI
    assert Golden(Fraction(1, 2)) == 0.5


@pytest.mark.parametrize("value", [0.5, True, "1", None])
def test_inexact_parts_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="Golden takes int or Fraction"):
        Golden(value)  # type: ignore[arg-type]


def test_zero_division_and_immutability() -> None:
    with pytest.raises(ZeroDivisionError):
        _ = PHI / (PHI - PHI)
    with pytest.raises(AttributeError):
        PHI.golden = Fraction(2)
    with pytest.raises(TypeError):
        _ = PHI + 0.5  # type: ignore[operator]


def test_text_and_copy() -> None:
    assert [str(Golden(*x)) for x in ((3,), (0, 1), (0, -1), (1, -2), (Fraction(-1, 2), Fraction(3, 4)))] == [
        "3", "phi", "-phi", "1 - 2·phi", "-1/2 + 3/4·phi"]  # fmt: skip
    assert pickle.loads(pickle.dumps(PHI)) == PHI
