"""Bounds: enclosures of logarithms, exact comparison, and endpoints rounded inward to the very next double."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.core.bounds import Interval, Log, enclose, least, less_equal, lower_endpoint, upper_endpoint
from karat.core.golden import PHI, Golden

positive = st.fractions(min_value=Fraction(1, 10**6), max_value=10**6, max_denominator=10**6)


def ln(x: Fraction) -> Decimal:
    with localcontext() as context:
        context.prec = 80
        return (Decimal(x.numerator) / x.denominator).ln()


@given(positive, st.integers(20, 150))
def test_log_is_enclosed(x: Fraction, bits: int) -> None:
    low, high = Log(x).enclosure(bits)
    exact = ln(x)
    with localcontext() as context:
        context.prec = 80
        slack = Decimal("1e-70")
        assert Decimal(low.numerator) / low.denominator <= exact + slack
        assert exact - slack <= Decimal(high.numerator) / high.denominator
    assert high - low < Fraction(64, 2**bits)


@given(
    st.one_of(
        st.builds(Golden, st.fractions(max_denominator=999), st.fractions(max_denominator=999)), positive.map(Log)
    )
)
def test_endpoints_are_inward_and_tight(x: Golden | Log) -> None:
    low, high = enclose(x, 400)
    up, down = lower_endpoint(x), upper_endpoint(x)
    assert Fraction(up) >= low and Fraction(down) <= high
    assert Fraction(math.nextafter(up, -math.inf)) < high
    assert Fraction(math.nextafter(down, math.inf)) > low


def test_known_endpoints() -> None:
    assert upper_endpoint(Fraction(3, 2)) == lower_endpoint(Fraction(3, 2)) == 1.5
    assert lower_endpoint(Fraction(996, 1000)) == math.nextafter(0.996, 1)  # the double 0.996 is below 249/250
    assert upper_endpoint(Fraction(7, 1000)) == math.nextafter(0.007, 0)  # and 0.007 is above 7/1000
    assert lower_endpoint(PHI) == 1.618033988749895
    assert upper_endpoint(PHI) == 1.6180339887498947


def test_exact_order_of_the_entropy_bounds() -> None:
    nine = Log(Fraction(9))
    assert less_equal(nine, Fraction(14, 5)) and not less_equal(Fraction(14, 5), nine)
    assert less_equal(Fraction(14, 5), Log(Fraction(9), Fraction(2)))
    assert less_equal(nine, nine)
    assert least(PHI**2, nine, 3) == nine
    assert less_equal(PHI, PHI) and less_equal(Golden(2), 2)


def test_interval_contains_exactly() -> None:
    interval = Interval(PHI, Log(Fraction(9)))
    assert (
        interval.contains(2) and not interval.contains(Fraction(1618, 1000)) and not interval.contains(Fraction(11, 5))
    )
    assert Fraction(interval.at_least) >= PHI and less_equal(Fraction(interval.at_most), Log(Fraction(9)))
    with pytest.raises(ValueError, match="empty interval"):
        Interval(3, PHI)


@pytest.mark.parametrize("argument", [Fraction(0), Fraction(-1)])
def test_log_of_nothing_is_refused(argument: Fraction) -> None:
    with pytest.raises(ValueError, match="argument > 0"):
        Log(argument)
