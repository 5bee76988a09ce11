"""Identities decided by SymPy: the running functions on symbols give expressions that must expand to zero.

Only `expand` and, where it leaves something, cancellation to a normal form decide; `simplify` and numerical equality
do not. Non-tautology: with symbols in place of the functions' results some expression must not be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sympy

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import Identity
from karat.core.ops import add_up
from karat.proofs import discipline
from karat.proofs.exploration import Outcome, flatten
from karat.proofs.reach import paused, reaching


class SympyOps:
    """The arithmetic protocol on SymPy expressions."""

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        return sympy.Piecewise((yes, condition), (no, True))

    def minimum(self, a: Any, b: Any) -> Any:
        return sympy.Min(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return sympy.Max(a, b)

    def absolute(self, x: Any) -> Any:
        return sympy.Abs(x)

    def sum(self, terms: Iterable[Any]) -> Any:
        return add_up(terms)

    def exp(self, x: Any) -> Any:
        return sympy.exp(x)

    def log(self, x: Any) -> Any:
        return sympy.log(x)

    def xlogx(self, x: Any) -> Any:
        return x * sympy.log(x)

    def cospi(self, x: Any) -> Any:
        return sympy.cos(sympy.pi * x)

    def constant(self, value: float, like: Any) -> Any:
        return sympy.Rational(value)


def prove_identity(obligation: Identity, *, thorough: bool = True) -> Outcome:
    """Decides whether every expression is zero identically."""
    discipline.demand(obligation.about, straight=True)
    with paused():
        return _prove(obligation, thorough)


def _prove(obligation: Identity, thorough: bool) -> Outcome:
    running = [reaching(f) for f in obligation.about]
    expressions = flatten(list(_named(obligation.show(sympy, SympyOps(), *running))))
    if not expressions:
        return Outcome(Grade.VACUOUS, "no expression")
    for place, expression in enumerate(expressions):
        rest = _normal(expression)
        if rest != 0:
            note = f"expression {place + 1} of {len(expressions)} leaves {str(rest)[:200]}"
            return Outcome(Grade.REFUTED, note, Counterexample(values={}, reproduced=True, note=note))
    checks = {}
    if obligation.about and thorough:
        count = [0]
        havoc = [_arbitrary(f, count) for f in obligation.about]
        loose = flatten(list(_named(obligation.show(sympy, SympyOps(), *havoc))))
        if all(_normal(expression) == 0 for expression in loose):
            return Outcome(Grade.VACUOUS, "holds for any function whatever")
        checks["not a tautology"] = "fails for an arbitrary function"
    return Outcome(Grade.PROVED, f"{len(expressions)} expressions expand to zero", None, checks)


def _named(result: Any) -> Iterable[Any]:
    return result.values() if isinstance(result, dict) else flatten(result)


def _normal(expression: Any) -> Any:
    rest = sympy.expand(expression)
    if rest == 0:
        return rest
    rest = sympy.expand(sympy.expand_log(rest))  # not forced: only where the symbols' assumptions allow it
    return rest if rest == 0 else sympy.cancel(sympy.together(rest))


def _arbitrary(function: Callable[..., Any], count: list[int]) -> Callable[..., Any]:
    def fresh(like: Any) -> Any:
        if isinstance(like, (list, tuple)):
            return [fresh(item) for item in like]
        count[0] += 1
        return sympy.Symbol(f"arbitrary_{count[0]}")

    return lambda *arguments, **named: fresh(function(*arguments, **named))
