"""The sign of a difference: queries about doubles decided without the bits of a subtraction, where the sign suffices.

A guard accepts when a difference of two doubles is not negative. Whatever the bits of fl(x - y), it is positive iff
x > y, negative iff x < y, and NaN iff x or y is, or both are the same infinity. `lemma` states that, Z3 decides it in
this process, for all doubles, before it is used, and without it nothing here answers. A query in which every x - y is
any double of which that is true has at least the models of the query: unsat of it is unsat of the query. A model of
it is a model of the query when the query holds at its values, which Z3 decides with the bits; else nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import z3

DOUBLE = z3.Float64()
Ask = Callable[..., tuple[str, Any]]
"""Z3 with the bits: assertions -> (answer, model or None)."""


def sign_of_difference(difference: Any, x: Any, y: Any) -> Any:
    """What is true of the double nearest to x - y."""
    zero = z3.FPVal(0.0, DOUBLE)
    no_number = z3.Or(z3.fpIsNaN(x), z3.fpIsNaN(y), z3.And(z3.fpIsInf(x), z3.fpEQ(x, y)))
    return z3.And(
        z3.fpGT(difference, zero) == z3.fpGT(x, y),
        z3.fpLT(difference, zero) == z3.fpLT(x, y),
        z3.fpIsNaN(difference) == no_number,
    )


def lemma() -> Any:
    """The claim about every two doubles."""
    x, y = z3.FP("difference!x", DOUBLE), z3.FP("difference!y", DOUBLE)
    return sign_of_difference(z3.fpSub(z3.RNE(), x, y), x, y)


MANY = 3
"""Differences from constants in one query that cost more with their bits than the lemma does."""
_SHOWN: list[bool] = []


def shown(ask: Ask) -> bool:
    """Whether Z3 shows the lemma; asked once in a process."""
    if not _SHOWN:
        _SHOWN.append(ask(z3.Not(lemma()))[0] == "unsat")
    return _SHOWN[0]


class Differences:
    """The differences of the queries of one obligation, which have most of their terms in common."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any, frozenset[str]]] = {}
        self._facts: dict[str, Any] = {}

    def by_sign(self, assertions: Sequence[Any], ask: Ask) -> tuple[str, Any] | None:
        """Z3's answer and model for the assertions without the bits of their differences; None when that does not do.

        A few differences from constants cost less with their bits than the lemma does.
        """
        rewritten = [self._rewritten(assertion) for assertion in assertions]
        names = sorted(frozenset().union(*(names for _, names in rewritten)))
        if (len(names) < MANY and not any("of terms" in name for name in names)) or not shown(ask):
            return None
        answer, model = ask(*(term for term, _ in rewritten), *(self._facts[name] for name in names))
        if answer == "unsat":
            return "unsat", None
        if answer == "sat":
            constants = {c.get_id(): c for assertion in assertions for c in _constants(assertion)}
            fixed = [_is(c, model.eval(c, model_completion=True)) for c in constants.values()]
            answer, model = ask(*assertions, *fixed)
            if answer == "sat":
                return "sat", model
        return None

    def _rewritten(self, term: Any) -> tuple[Any, frozenset[str]]:
        """The term with every difference replaced by a name, and the names in it; notes what is true of each."""
        if term.get_id() in self._known:
            return self._known[term.get_id()][1:]
        parts = [self._rewritten(child) for child in term.children()]
        names = frozenset().union(*(names for _, names in parts))
        new = term.decl()(*(part for part, _ in parts)) if names else term
        if z3.is_app(term) and term.decl().kind() == z3.Z3_OP_FPA_SUB and term.sort() == DOUBLE:
            (rounding, _), (x, _), (y, _) = parts
            if rounding.eq(z3.RNE()):
                kind = "from a constant" if z3.is_fp_value(x) or z3.is_fp_value(y) else "of terms"
                name = f"difference!{len(self._facts)} {kind}"
                new = z3.FP(name, DOUBLE)
                self._facts[name] = sign_of_difference(new, x, y)
                names |= {name}  # beside those of the differences inside it
        self._known[term.get_id()] = term, new, names  # the term is kept: its number is its own while it lives
        return new, names


def _constants(term: Any) -> list[Any]:
    found, seen, waiting = [], set(), [term]
    while waiting:
        one = waiting.pop()
        if one.get_id() in seen:
            continue
        seen.add(one.get_id())
        waiting += one.children()
        if z3.is_const(one) and one.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            found.append(one)
    return found


def _is(constant: Any, value: Any) -> Any:
    """The constant has this value, a NaN and the sign of a zero included."""
    if not z3.is_fp(constant):
        return constant == value
    same = z3.And(z3.fpEQ(constant, value), z3.fpIsNegative(constant) == z3.fpIsNegative(value))
    return z3.If(z3.fpIsNaN(value), z3.fpIsNaN(constant), same)
