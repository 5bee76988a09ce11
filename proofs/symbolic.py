"""Path-forking symbolic carriers: the unmodified functions of core/formulas run on Z3 terms.

`if`, `and`, `min` and all else that asks a symbolic condition for its truth forks the path: the explorer asks Z3 which
sides are feasible, takes one and comes back for the other, so that the set of paths is complete. What cannot be
followed (float(), int(), hash(), formatting, a dict lookup) raises Concretised; nothing is guessed.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import z3

FEASIBILITY_RLIMIT = 300_000
MAX_PATHS = 512


class Concretised(TypeError):
    """A function wanted the concrete value of a symbolic one."""


class PathBudget(RuntimeError):
    """More paths than MAX_PATHS: the exploration is incomplete, so nothing is claimed."""


@dataclass
class Path:
    """One way through a function: the condition under which it is taken, its value, the divisors that it met."""

    condition: list[Any]
    value: Any
    divisors: list[tuple[list[Any], Any]]
    calls: list[Any]


@dataclass
class Explorer:
    """Runs a function on symbolic arguments along every feasible path, under hypotheses."""

    hypotheses: list[Any]
    phase: str = "any"
    axioms: dict[str, Any] = field(default_factory=dict)
    pool: list[Any] = field(default_factory=list)
    condition: list[Any] = field(default_factory=list)
    divisors: list[tuple[list[Any], Any]] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    fresh: int = 0
    assumed: dict[str, None] = field(default_factory=dict)
    sides: dict[str, list[tuple[list[Any], Any]]] = field(default_factory=dict)
    products: dict[str, str] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    _prefix: list[bool] = field(default_factory=list)
    _taken: list[bool] = field(default_factory=list)
    _pending: list[list[bool]] = field(default_factory=list)
    _solver: Any = None

    def run(self, function: Callable[[], Any]) -> list[Path]:
        """Every path through function(); an exception in it is raised with the path that led there."""
        paths: list[Path] = []
        pending: list[list[bool]] = [[]]
        while pending:
            if len(paths) >= MAX_PATHS:
                raise PathBudget(f"more than {MAX_PATHS} paths")
            self._prefix, self._taken, self._pending = pending.pop(), [], pending
            self.condition, self.divisors, self.calls, self.fresh, self.products = [], [], [], 0, {}
            self.noted = {}
            self._solver = z3.Solver()
            self._solver.set("rlimit", FEASIBILITY_RLIMIT)
            self._solver.add(*self.hypotheses)
            with _exploring(self):
                value = function()
            paths.append(Path(self.condition, value, self.divisors, self.calls))
        return paths

    def decide(self, term: Any) -> bool:
        """Which way to go at a condition; the other way is queued when it is feasible too."""
        place = len(self._taken)
        if place < len(self._prefix):
            choice = self._prefix[place]
        else:
            choice = self._solver.check(term) != z3.unsat  # unknown counts as feasible: sound
            if choice and self._solver.check(z3.Not(term)) != z3.unsat:
                self._pending.append([*self._taken, False])
        self._taken.append(choice)
        chosen = term if choice else z3.Not(term)
        self.condition.append(chosen)
        self._solver.add(chosen)
        return choice

    def divisor(self, term: Any) -> None:
        """Notes that term was divided by here: that it is not zero becomes a goal of its own."""
        self.divisors.append((list(self.condition), term))

    def side(self, term: Any, what: str) -> None:
        """Notes a side of a condition that the claim under way states: that it can be taken becomes a check of its own."""
        place = _claim_line()
        if self.phase == "show" and place:
            if what == "antecedent":  # there may be several on one line, and each must be true somewhere
                self.noted[place] = self.noted.get(place, 0) + 1
                what = f"antecedent {self.noted[place]}"
            self.sides.setdefault(f"{place} {what}", []).append((list(self.condition), term))

    def axiom(self, label: str, *terms: Any) -> None:
        """Adds facts that hold of every number, with the name under which the evidence lists them."""
        self.assumed[label] = None
        for term in terms:
            self.axioms.setdefault(term.sexpr(), term)

    def fresh_name(self) -> str:
        """A name for a value of which nothing is known; counted along the path, so that equal prefixes share names,
        and marked with the phase, so that a hypothesis and a claim do not."""
        self.fresh += 1
        return f"{self.phase}!{self.fresh}"


def _claim_line() -> str:
    """`inv08_lr_band.py:120` where a claim states a condition; empty where a running function does."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "karat.core.obligation"):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__", "").startswith("karat.core."):
        return ""
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


_CURRENT: contextvars.ContextVar[Explorer] = contextvars.ContextVar("explorer")


def current() -> Explorer:
    """The explorer at work; Concretised when a symbolic value is used outside one."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise Concretised("a symbolic condition was asked for its truth outside an exploration") from None


@contextmanager
def _exploring(explorer: Explorer) -> Iterator[None]:
    token = _CURRENT.set(explorer)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class Opaque:
    """What every carrier refuses."""

    e: Any
    __slots__ = ("e",)

    def __init__(self, term: Any) -> None:
        self.e = term

    def _refuse(self, *_: Any) -> Any:
        raise Concretised(f"a symbolic value was made concrete: {self.e}")

    __float__ = __int__ = __index__ = __round__ = __format__ = __complex__ = _refuse
    __hash__ = _refuse

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.e})"


def _note_side(term: Any, what: str) -> None:
    explorer = _CURRENT.get(None)
    if explorer is not None:
        explorer.side(term, what)


def _note_both_sides(term: Any) -> None:
    """Both sides of each bound in an equivalence: each comparison true, and false, where it alone decides the whole."""
    if z3.is_true(term) or z3.is_false(term):
        _note_side(term, f"decided {term}")
        return
    for place, atom in enumerate(_comparisons(term)):
        yes, no = (z3.substitute(term, (atom, z3.BoolVal(value))) for value in (True, False))
        for side, way in ((atom, "true"), (z3.Not(atom), "false")):
            _note_side(z3.And(yes != no, side), f"comparison {place + 1} {way}")


def _comparisons(term: Any) -> list[Any]:
    """The parts of a condition that are not made of truth values."""
    if z3.is_and(term) or z3.is_or(term) or z3.is_not(term) or z3.is_implies(term):
        return [atom for child in term.children() for atom in _comparisons(child)]
    return [] if z3.is_true(term) or z3.is_false(term) else [term]


class SBool(Opaque):
    """A symbolic truth value. `and`, `or`, `not` and `if` fork; & | ~ and implies do not."""

    __slots__ = ()

    @staticmethod
    def lift(value: Any) -> Any:
        if isinstance(value, SBool):
            return value.e
        if isinstance(value, bool):
            return z3.BoolVal(value)
        raise Concretised(f"{value!r} is not a truth value")

    def __bool__(self) -> bool:
        return current().decide(self.e)

    def __and__(self, other: Any) -> SBool:
        return SBool(z3.And(self.e, SBool.lift(other)))

    def __or__(self, other: Any) -> SBool:
        return SBool(z3.Or(self.e, SBool.lift(other)))

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> SBool:
        return SBool(z3.Not(self.e))

    def when(self, decided: bool) -> SBool:
        """The condition where `decided` is true; both sides of it are noted, as for an equivalence."""
        _note_both_sides(self.e)
        _note_both_sides(z3.BoolVal(decided))
        return self if decided else SBool(z3.BoolVal(True))

    def implies(self, other: Any) -> SBool:
        _note_side(self.e, "antecedent")
        return SBool(z3.Implies(self.e, SBool.lift(other)))

    def __eq__(self, other: Any) -> SBool:  # type: ignore[override]
        for term in (self.e, SBool.lift(other)):
            _note_both_sides(term)
        return SBool(self.e == SBool.lift(other))

    def __ne__(self, other: Any) -> SBool:  # type: ignore[override]
        return SBool(self.e != SBool.lift(other))

    __hash__ = Opaque._refuse


class Ordered(Opaque):
    """Comparisons for a carrier that can `lift` and `compare`."""

    __slots__ = ()

    def compare(self, other: Any, how: str) -> SBool:
        raise NotImplementedError

    def __lt__(self, other: Any) -> SBool:
        return self.compare(other, "<")

    def __le__(self, other: Any) -> SBool:
        return self.compare(other, "<=")

    def __gt__(self, other: Any) -> SBool:
        return self.compare(other, ">")

    def __ge__(self, other: Any) -> SBool:
        return self.compare(other, ">=")

    def __eq__(self, other: Any) -> SBool:  # type: ignore[override]
        return self.compare(other, "==")

    def __ne__(self, other: Any) -> SBool:  # type: ignore[override]
        return ~self.compare(other, "==")

    __hash__ = Opaque._refuse

    def __bool__(self) -> bool:
        return bool(self != 0)
