"""The carriers for what a machine computes with: float64 and integer lanes, both to the bit."""

from __future__ import annotations

from typing import Any, ClassVar

import z3

from karat.proofs.symbolic import Concretised, Ordered, SBool, current


def any_double(how: str, a: Any, b: Any) -> DoubleSym:
    """A double of which nothing is known but that the same operation on the same operands gives it again."""
    explorer = current()
    explorer.assumed["the result of *, / and cos may be any double, the same for the same operands"] = None
    operation = f"{a.sexpr()} {how} {b.sexpr()}"
    if operation not in explorer.products:
        explorer.products[operation] = explorer.fresh_name()
    return DoubleSym(z3.FP(explorer.products[operation], z3.Float64()))


class DoubleSym(Ordered):
    """A float64 under round-to-nearest. + and - are exact to the bit; * and / give any double, which is sound."""

    __slots__ = ()
    sort: ClassVar[Any] = z3.Float64()

    def lift(self, value: Any) -> Any:
        if isinstance(value, DoubleSym):
            return value.e
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, int) and int(float(value)) != value:
                raise Concretised(f"{value} is not a double")
            return z3.FPVal(float(value), self.sort)
        raise Concretised(f"{value!r} is not a double")

    def compare(self, other: Any, how: str) -> SBool:
        relation = {"<": z3.fpLT, "<=": z3.fpLEQ, ">": z3.fpGT, ">=": z3.fpGEQ, "==": z3.fpEQ}[how]
        return SBool(relation(self.e, self.lift(other)))

    def __add__(self, other: Any) -> DoubleSym:
        return DoubleSym(z3.fpAdd(z3.RNE(), self.e, self.lift(other)))

    def __sub__(self, other: Any) -> DoubleSym:
        return DoubleSym(z3.fpSub(z3.RNE(), self.e, self.lift(other)))

    def __rsub__(self, other: Any) -> DoubleSym:
        return DoubleSym(z3.fpSub(z3.RNE(), self.lift(other), self.e))

    __radd__ = __add__

    def __mul__(self, other: Any) -> DoubleSym:
        return any_double("*", self.e, self.lift(other))

    def __rmul__(self, other: Any) -> DoubleSym:
        return any_double("*", self.lift(other), self.e)

    def __truediv__(self, other: Any) -> DoubleSym:
        current().divisor(self.lift(other))  # Python raises on a zero divisor
        return any_double("/", self.e, self.lift(other))

    def __rtruediv__(self, other: Any) -> DoubleSym:
        current().divisor(self.e)
        return any_double("/", self.lift(other), self.e)

    def __neg__(self) -> DoubleSym:
        return DoubleSym(z3.fpNeg(self.e))

    def __abs__(self) -> DoubleSym:
        return DoubleSym(z3.fpAbs(self.e))


class BitSym(Ordered):
    """A lane in two's complement, as an int32 or int64 array has it: signed comparison, arithmetic right shift."""

    __slots__ = ()

    def lift(self, value: Any) -> Any:
        if isinstance(value, BitSym):
            return value.e
        if isinstance(value, int) and not isinstance(value, bool):
            return z3.BitVecVal(value, self.e.size())
        raise Concretised(f"{value!r} is not a bit pattern")

    def compare(self, other: Any, how: str) -> SBool:
        a, b = self.e, self.lift(other)
        return SBool({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b}[how])

    def __add__(self, other: Any) -> BitSym:
        return BitSym(self.e + self.lift(other))

    def __sub__(self, other: Any) -> BitSym:
        return BitSym(self.e - self.lift(other))

    def __rsub__(self, other: Any) -> BitSym:
        return BitSym(self.lift(other) - self.e)

    def __and__(self, other: Any) -> BitSym:
        return BitSym(self.e & self.lift(other))

    def __or__(self, other: Any) -> BitSym:
        return BitSym(self.e | self.lift(other))

    def __xor__(self, other: Any) -> BitSym:
        return BitSym(self.e ^ self.lift(other))

    def __mul__(self, other: Any) -> BitSym:
        return BitSym(self.e * self.lift(other))

    def __neg__(self) -> BitSym:
        return BitSym(-self.e)

    def __pos__(self) -> BitSym:
        return self

    def __abs__(self) -> BitSym:
        return BitSym(z3.If(self.e < 0, -self.e, self.e))

    __radd__, __rand__, __ror__, __rxor__, __rmul__ = __add__, __and__, __or__, __xor__, __mul__

    def __lshift__(self, other: Any) -> BitSym:
        return BitSym(self.e << self.lift(other))

    def __rlshift__(self, other: Any) -> BitSym:
        return BitSym(self.lift(other) << self.e)

    def __rshift__(self, other: Any) -> BitSym:
        return BitSym(self.e >> self.lift(other))
