"""The carrier for reals and integers, and the interpreter of the arithmetic protocol on all carriers.

Literals are lifted exactly: a float by its binary value, a Golden as a + b·phi with phi the positive root of
x^2 = x + 1. cos(pi x), x ln x and ln of a constant are uninterpreted terms with instantiated facts, each listed in
the evidence of what used it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import z3

from karat.core.bounds import Log
from karat.core.golden import Golden
from karat.core.ops import add_up
from karat.proofs.machine_carriers import BitSym, DoubleSym, any_double
from karat.proofs.symbolic import Concretised, Ordered, SBool, current

COSPI = z3.Function("cospi", z3.RealSort(), z3.RealSort())
XLOGX = z3.Function("xlogx", z3.RealSort(), z3.RealSort())
PHI_SYMBOL = z3.Real("phi")


def rational(value: Fraction | int) -> Any:
    """The Z3 numeral of an exact rational."""
    exact = Fraction(value)
    return z3.Q(exact.numerator, exact.denominator)


def _real(term: Any) -> Any:
    return z3.ToReal(term) if z3.is_int(term) else term


class RealSym(Ordered):
    """A real or an integer. Division is Python's: of reals, with a divisor that must be shown not to be zero."""

    __slots__ = ()

    def lift(self, value: Any) -> Any:
        return lift(value)

    def compare(self, other: Any, how: str) -> SBool:
        a, b = self.e, lift(other)
        return SBool({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b}[how])

    def __add__(self, other: Any) -> RealSym:
        return RealSym(self.e + lift(other))

    def __sub__(self, other: Any) -> RealSym:
        return RealSym(self.e - lift(other))

    def __rsub__(self, other: Any) -> RealSym:
        return RealSym(lift(other) - self.e)

    def __mul__(self, other: Any) -> RealSym:
        return RealSym(self.e * lift(other))

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> RealSym:
        divisor = z3.simplify(_real(lift(other)))
        if not (z3.is_rational_value(divisor) and divisor.numerator_as_long() != 0):
            current().divisor(divisor)
        return RealSym(_real(self.e) / divisor)

    def __rtruediv__(self, other: Any) -> RealSym:
        return RealSym(_real(lift(other))) / self

    def __floordiv__(self, other: Any) -> RealSym:
        if not (z3.is_int(self.e) and isinstance(other, int) and other > 0):
            raise Concretised("// is followed for an integer over a positive literal only")
        return RealSym(self.e / other)  # Z3's integer division rounds down for a positive divisor, as Python's

    def __neg__(self) -> RealSym:
        return RealSym(-self.e)

    def __pos__(self) -> RealSym:
        return self

    def __abs__(self) -> RealSym:
        return self if self >= 0 else -self


def lift(value: Any) -> Any:
    """The exact Z3 term of a number; Concretised for anything else."""
    if isinstance(value, RealSym):
        return value.e
    if isinstance(value, Golden):
        if value.golden == 0:
            return rational(value.rational)
        phi = PHI_SYMBOL
        current().axiom("phi is the positive root of x^2 = x + 1", phi > 1, phi < 2, phi * phi == phi + 1)
        return rational(value.rational) + rational(value.golden) * phi
    if isinstance(value, int) and not isinstance(value, bool):
        return z3.IntVal(value)
    if isinstance(value, (Fraction, float)):
        return rational(Fraction(value))  # a float is lifted by its binary value, never by its digits
    raise Concretised(f"{value!r} is not a number")


def _nan_or(a: Any, condition: Any) -> Any:
    """a is NaN or the condition; only a double can be NaN."""
    return condition | (a != a) if isinstance(a, (DoubleSym, float)) else condition


class SymbolicOps:
    """The arithmetic protocol on carriers (and literals mixed in)."""

    def __init__(self, tangents: Iterable[Fraction] = ()) -> None:
        self.tangents = tuple(Fraction(c) for c in tangents)

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        if isinstance(condition, bool):
            return yes if condition else no
        kind = next((type(x) for x in (yes, no) if isinstance(x, (DoubleSym, BitSym, RealSym))), None)
        if kind is None:
            if isinstance(yes, (bool, SBool)):
                return SBool(z3.If(condition.e, SBool.lift(yes), SBool.lift(no)))
            if isinstance(yes, float) or isinstance(no, float):
                return yes if condition else no  # two literals: fork
            return RealSym(z3.If(condition.e, lift(yes), lift(no)))
        model = yes if isinstance(yes, kind) else no
        return kind(z3.If(condition.e, model.lift(yes), model.lift(no)))

    def minimum(self, a: Any, b: Any) -> Any:
        return self.where(_nan_or(a, a < b), a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return self.where(_nan_or(a, a > b), a, b)

    def absolute(self, x: Any) -> Any:
        if isinstance(x, RealSym):
            return RealSym(z3.If(x.e >= 0, x.e, -x.e))
        return abs(x)

    def sum(self, terms: Iterable[Any]) -> Any:
        return add_up(terms)

    def exp(self, x: Any) -> Any:
        raise Concretised("exp has no symbolic reading here")

    def log(self, x: Any) -> Any:
        if not isinstance(x, (int, Fraction)):
            raise Concretised("ln is followed for rational constants only")
        exact = Fraction(x)
        if exact < 1:
            return -self.log(1 / exact)
        symbol = z3.Real(f"ln({exact})")
        low, high = Log(exact).enclosure(64)
        current().axiom(f"ln {exact} by enclosure", rational(low) <= symbol, symbol <= rational(high))
        return RealSym(symbol)

    def xlogx(self, x: Any) -> Any:
        term = _real(lift(x))
        value, explorer = XLOGX(term), current()
        explorer.axiom("x ln x <= 0 on [0, 1]", z3.Implies(z3.And(term >= 0, term <= 1), value <= 0))
        for c in self.tangents:
            below = term * self.log(c).e + term - rational(c)
            explorer.axiom(f"x ln x >= its tangent at {c} for x >= 0", z3.Implies(term >= 0, value >= below))
        return RealSym(value)

    def cospi(self, x: Any) -> Any:
        if isinstance(x, DoubleSym):
            return any_double("cospi", x.e, x.e)
        if isinstance(x, int):
            return 1 if x % 2 == 0 else -1
        term = _real(lift(x))
        value, explorer = COSPI(term), current()
        explorer.axiom(
            "cos(pi x) is in [-1, 1], 1 at even integers, -1 at odd ones",
            value >= -1,
            value <= 1,
            z3.Implies(z3.IsInt(term / 2), value == 1),
            z3.Implies(z3.IsInt((term - 1) / 2), value == -1),
        )
        for other in explorer.pool:
            for low, high in ((term, other), (other, term)):
                falls = z3.Implies(z3.And(low >= 0, low <= high, high <= 1), COSPI(high) <= COSPI(low))
                explorer.axiom("cos(pi x) falls on [0, 1]", falls)
        explorer.pool.append(term)
        return RealSym(value)

    def constant(self, value: float, like: Any) -> Any:
        if isinstance(like, BitSym):
            return BitSym(like.lift(value))
        return value
