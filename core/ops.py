"""The arithmetic protocol that formulas are written against, and its float interpreter.

A formula uses the operators + - * / and comparisons of its arguments, Python's `if` where a scalar decides a branch,
and for all else an `Ops`: the same function then runs on floats, exact fractions, tensors, and solver terms. Bit
formulas use & | >> on non-negative integers and `where`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

Number = Any
"""A float, int, Fraction, Golden, tensor, array or symbolic term: whatever the interpreter at hand works on."""


class Ops(Protocol):
    """What a formula may ask for beyond operators. Scalars or arrays, element by element."""

    def where(self, condition: Any, yes: Number, no: Number) -> Number:
        """yes where the condition holds, else no; one of the two must be of the arguments' kind, see constant."""

    def minimum(self, a: Number, b: Number) -> Number:
        """The smaller; NaN if either is."""

    def maximum(self, a: Number, b: Number) -> Number:
        """The larger; NaN if either is."""

    def absolute(self, x: Number) -> Number:
        """|x|."""

    def sum(self, terms: Iterable[Number]) -> Number:
        """The terms added from left to right, starting at the first; 0 when there are none."""

    def exp(self, x: Number) -> Number:
        """e^x."""

    def log(self, x: Number) -> Number:
        """The natural logarithm of x > 0."""

    def xlogx(self, x: Number) -> Number:
        """x ln x for x >= 0, with the limit 0 at x = 0."""

    def cospi(self, x: Number) -> Number:
        """cos(pi x)."""

    def constant(self, value: float, like: Number) -> Number:
        """The constant as a number of the kind of `like`."""


class FloatOps:
    """The interpreter on Python numbers: float64 for exp, log and cos, exact for the rest on int and Fraction."""

    def where(self, condition: Any, yes: Number, no: Number) -> Number:
        return yes if condition else no

    def minimum(self, a: Number, b: Number) -> Number:
        return a if a < b or a != a else b  # a NaN in b fails a < b, and b is returned

    def maximum(self, a: Number, b: Number) -> Number:
        return a if a > b or a != a else b

    def absolute(self, x: Number) -> Number:
        return abs(x)

    def sum(self, terms: Iterable[Number]) -> Number:
        return add_up(terms)

    def exp(self, x: Number) -> Number:
        return math.exp(x)

    def log(self, x: Number) -> Number:
        return math.log(x)

    def xlogx(self, x: Number) -> Number:
        return x * math.log(x) if x != 0 else 0.0

    def cospi(self, x: Number) -> Number:
        if x % 1 == 0:  # exact at integers, where math.pi would not be
            return 1 - 2 * (int(x) % 2)
        return math.cos(math.pi * x)

    def constant(self, value: float, like: Number) -> Number:
        return value


def add_up(terms: Iterable[Number]) -> Number:
    """The terms added from left to right; 0 when there are none. No 0 + x at the start, which could change a type."""
    total: Number = None
    for term in terms:
        total = term if total is None else total + term
    return 0 if total is None else total


FLOAT: Ops = FloatOps()
