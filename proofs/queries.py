"""Every query that Z3 is asked, as SMT-LIB 2.6 text, with Z3's answer: what a second solver is given to decide again.

Budget.check notes a query here when somebody records, and does nothing otherwise. The text is Z3's own print of the
assertions, with what is Z3's alone translated; it is read back, and `faithful` says whether what was read is what Z3
was asked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import z3

from karat.core.evidence import Record

CALLERS = {
    "_prove": "hypotheses",
    "_complete": "completeness",
    "_decide": "goal",
    "notices": "arbitrary function",
    "sides": "both sides",
    "_fails_somewhere": "needed",
}
"""What a query is for, by the engine's function that asks it; any other function's name stands for itself."""


LOOKS = 3
"""How often two assertions are simplified before they count as different."""


class Query(Record):
    """One query. purpose: what it was asked for; text: SMT-LIB 2.6, complete; answer: Z3's, sat, unsat or unknown.

    witness: for sat, the values of Z3's model as equalities in SMT-LIB, those left out that are not rational.
    faithful: the text, read back by Z3, gives the assertions that Z3 was asked.
    """

    purpose: str
    text: str
    answer: str
    witness: tuple[str, ...] = ()
    faithful: bool = True


_SINK: ContextVar[list[Query] | None] = ContextVar("queries", default=None)


@contextmanager
def recording() -> Iterator[list[Query]]:
    """Collects every query that is asked inside, in order."""
    found: list[Query] = []
    token = _SINK.set(found)
    try:
        yield found
    finally:
        _SINK.reset(token)


def note(assertions: Sequence[Any], answer: str, model: Any, purpose: str | None = None) -> None:
    """Notes a query when somebody records; without a purpose the function that asked names it."""
    sink = _SINK.get()
    if sink is not None:
        sink.append(query(purpose or _asked_by(), assertions, answer, model))


def query(purpose: str, assertions: Sequence[Any], answer: str, model: Any = None) -> Query:
    """The query as a record."""
    standard = _standard(assertions)
    text = smtlib(standard)
    faithful = _equal(z3.parse_smt2_string(text), standard)
    witness = _witness(model) if model is not None else []
    names = _short_names(text)
    return Query(
        purpose=purpose,
        text=_renamed(text, names),
        answer=answer,
        witness=tuple(_renamed(line, names) for line in witness),
        faithful=faithful,
    )


def smtlib(assertions: Sequence[Any]) -> str:
    """The assertions as SMT-LIB 2.6, with the logic ALL, that ends in (check-sat)."""
    solver = z3.Solver()
    solver.add(*assertions)
    lines = [line for line in solver.to_smt2().splitlines() if not line.startswith((";", "(set-info")) and line]
    return "\n".join(["(set-logic ALL)", *lines, ""])


def _asked_by() -> str:
    """The engine's function that asked: the first above Budget.check that is not a comprehension."""
    frame = sys._getframe(3)
    while frame.f_code.co_name.startswith("<") and frame.f_back is not None:
        frame = frame.f_back
    name = frame.f_code.co_name
    return CALLERS.get(name, name.strip("_").replace("_", " "))


def _standard(assertions: Sequence[Any]) -> list[Any]:
    """The assertions without fp.to_ieee_bv, which is not SMT-LIB: a fresh b with to_fp(b) = x stands for it.

    For every x but NaN, b is the one pattern there is. Of a NaN b is any pattern, where Z3 takes one: an unsat of
    the translation holds of the original, and a claim that looks at the pattern of a NaN could differ on sat.
    """
    result = list(assertions)
    place = 0
    while (term := _first_pattern(result)) is not None:
        place += 1
        fresh = z3.BitVec(f"ieee!{place}", term.size())
        floating = term.arg(0)
        result = [z3.substitute(assertion, (term, fresh)) for assertion in result]
        result.append(z3.fpBVToFP(fresh, floating.sort()) == floating)
    return result


def _first_pattern(assertions: Sequence[Any]) -> Any:
    """A term fp.to_ieee_bv(x) with no other inside x, or None."""
    seen: set[int] = set()

    def search(term: Any) -> Any:
        if term.get_id() in seen:
            return None
        seen.add(term.get_id())
        inner = next((found for child in term.children() if (found := search(child)) is not None), None)
        if inner is None and z3.is_app(term) and term.decl().kind() == z3.Z3_OP_FPA_TO_IEEE_BV:
            return term
        return inner

    return next((found for assertion in assertions if (found := search(assertion)) is not None), None)


def _equal(read: Any, assertions: Sequence[Any]) -> bool:
    """The same assertions, up to how numerals and lets are written: Z3's simplifier decides.

    It orders the terms of a sum by numbers that terms get when they are made: while earlier results are kept, equal
    terms keep theirs, so that a second look sees the same order where the first did not. That two assertions always have
    the same truth value would not do: of two that are false everywhere one may still be the wrong one.
    """
    pairs = list(zip(read, assertions, strict=False))
    kept: list[Any] = []

    def alike(a: Any, b: Any) -> bool:
        kept.extend((z3.simplify(a), z3.simplify(b)))
        return bool(kept[-1].eq(kept[-2]))

    return len(read) == len(assertions) and all(a.eq(b) or any(alike(a, b) for _ in range(LOOKS)) for a, b in pairs)


def _witness(model: Any) -> list[str]:
    """The model's values of constants; an irrational one has no numeral and is left out."""
    constants = [(d(), model[d]) for d in model.decls() if d.arity() == 0]
    return [f"(= {name.sexpr()} {value.sexpr()})" for name, value in constants if not z3.is_algebraic_value(value)]


def _short_names(text: str) -> dict[str, str]:
    """Names of arbitrary results carry the address of a function: numbered instead, so that equal runs give equal text."""
    found = dict.fromkeys(re.findall(r"arbitrary!(\d{6,})!", text))
    return {number: str(place) for place, number in enumerate(found)}


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub(r"arbitrary!(\d{6,})!", lambda m: f"arbitrary!{names.get(m[1], m[1])}!", text)
