"""Z3 terms evaluated at exact points, independently of Z3's own simplifier; and Z3 models as Python numbers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import z3

from karat.core.golden import PHI
from karat.core.ops import FLOAT

_OPERATIONS: dict[int, Callable[..., Any]] = {
    z3.Z3_OP_ADD: lambda *xs: sum(xs[1:], xs[0]),
    z3.Z3_OP_SUB: lambda a, *xs: a - sum(xs[1:], xs[0]),
    z3.Z3_OP_MUL: lambda *xs: math.prod(xs[1:], start=xs[0]),
    z3.Z3_OP_UMINUS: lambda a: -a,
    z3.Z3_OP_DIV: lambda a, b: Fraction(a) / b if isinstance(a, int) else a / b,
    z3.Z3_OP_IDIV: lambda a, b: a // b,
    z3.Z3_OP_TO_REAL: lambda a: a,
    z3.Z3_OP_IS_INT: lambda a: a == int(a),
    z3.Z3_OP_LE: lambda a, b: a <= b,
    z3.Z3_OP_LT: lambda a, b: a < b,
    z3.Z3_OP_GE: lambda a, b: a >= b,
    z3.Z3_OP_GT: lambda a, b: a > b,
    z3.Z3_OP_EQ: lambda a, b: a == b,
    z3.Z3_OP_DISTINCT: lambda a, b: a != b,
    z3.Z3_OP_NOT: lambda a: not a,
    z3.Z3_OP_AND: lambda *xs: all(xs),
    z3.Z3_OP_OR: lambda *xs: any(xs),
    z3.Z3_OP_IMPLIES: lambda a, b: not a or b,
    z3.Z3_OP_TRUE: lambda: True,
    z3.Z3_OP_FALSE: lambda: False,
}


def evaluate(term: Any, point: Mapping[str, Any]) -> Any:
    """The value of a term over reals, integers and truth values: exact, except below cos and ln, which are floats.

    Equal subterms are evaluated once: a term is a graph, and as a tree it can be exponentially large.
    """
    return _evaluate(term, point, {})


def _evaluate(term: Any, point: Mapping[str, Any], known: dict[int, Any]) -> Any:
    key = term.get_id()
    if key not in known:
        known[key] = _compute(term, point, known)
    return known[key]


def _compute(term: Any, point: Mapping[str, Any], known: dict[int, Any]) -> Any:
    if z3.is_rational_value(term):
        return Fraction(term.numerator_as_long(), term.denominator_as_long())
    if z3.is_int_value(term):
        return term.as_long()
    kind = term.decl().kind()
    if kind == z3.Z3_OP_ITE:
        condition, yes, no = term.children()
        return _evaluate(yes if _evaluate(condition, point, known) else no, point, known)
    arguments = [_evaluate(child, point, known) for child in term.children()]
    if kind == z3.Z3_OP_UNINTERPRETED:
        return _uninterpreted(term.decl().name(), arguments, point)
    if kind not in _OPERATIONS:
        raise ValueError(f"no evaluation for {term.decl().name()}")
    return _OPERATIONS[kind](*arguments)


def _uninterpreted(name: str, arguments: list[Any], point: Mapping[str, Any]) -> Any:
    if name == "cospi":
        return FLOAT.cospi(arguments[0])
    if name == "xlogx":
        return FLOAT.xlogx(float(arguments[0]))
    if name == "phi":
        return PHI
    if name.startswith("ln("):
        return math.log(Fraction(name[3:-1]))
    return point[name]


def model_value(model: Any, variable: Any) -> Any:
    """What a model says of a variable: a Fraction, an int, a float or a bool; an algebraic number is approximated."""
    value = model.eval(variable, model_completion=True)
    if z3.is_fp(value):
        bits = model.eval(z3.fpToIEEEBV(variable), model_completion=True)
        if z3.fpIsNaN(value) is None or z3.is_true(z3.simplify(z3.fpIsNaN(value))):
            return math.nan
        return struct.unpack("<d", struct.pack("<Q", bits.as_long()))[0]
    if z3.is_bv_value(value):
        return value.as_long()
    if z3.is_algebraic_value(value):
        value = value.approx(40)
    if z3.is_int_value(value):
        return value.as_long()
    if z3.is_rational_value(value):
        return Fraction(value.numerator_as_long(), value.denominator_as_long())
    return z3.is_true(value)
