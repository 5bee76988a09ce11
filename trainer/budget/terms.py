"""A quantity with the formula that it was computed from: the text that is shown is the text that is evaluated."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Symbols = Mapping[str, int]
"""Name -> value of what a formula may mention."""

_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_CALLS: Mapping[str, Callable[..., int]] = {"min": min, "max": max}
_POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Term:
    """One line of a budget: what it is of, the formula in symbols and with numbers, and its value."""

    part: str
    formula: str
    numbers: str
    value: int


def term(part: str, formula: str, symbols: Symbols) -> Term:
    """The line whose value is `formula` at `symbols`: integers, + - * // **, min and max; ValueError for anything else."""
    value = _evaluate(ast.parse(formula, mode="eval").body, symbols)
    filled = re.sub(r"[A-Za-z_]\w*", lambda match: str(symbols.get(match[0], match[0])), formula)
    return Term(part, pretty(formula), pretty(filled), value)


def total(terms: Iterable[Term]) -> int:
    """The sum of the lines."""
    return sum(line.value for line in terms)


def pretty(formula: str) -> str:
    """As it is printed: 2 * d**2 is 2·d²."""
    text = re.sub(r" ?\*\* ?(\d+)", lambda match: match[1].translate(_POWERS), formula)
    return text.replace(" // ", "/").replace(" * ", "·").replace("*", "·")


def _evaluate(node: ast.expr, symbols: Symbols) -> int:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            if name not in symbols:
                raise ValueError(f"the formula mentions {name}, which is none of {', '.join(symbols)}")
            return symbols[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, symbols), _evaluate(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _CALLS:
            return _CALLS[name](*(_evaluate(argument, symbols) for argument in arguments))
    raise ValueError(f"not part of a formula: {ast.unparse(node)}")
