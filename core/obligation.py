"""Obligations: what is to be shown about the running functions, and by which engine.

An obligation names the functions it is about and a claim that is ordinary Python over their results. Engines call
the claim with the functions and with values of their own: Z3 terms, SymPy symbols, doubles, fractions. So the claim
and the functions are written once; and an engine can hand in other functions (a mutant, an arbitrary result) to see
whether the claim notices. No prover is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

Function = Callable[..., Any]
Variables = Any
"""A namespace with one attribute per declared variable, and `ops`, the interpreter to hand to formulas."""


def implies(condition: Any, conclusion: Any) -> Any:
    """condition -> conclusion, for Python bools and for symbolic ones."""
    if isinstance(condition, bool):
        if hasattr(conclusion, "when"):  # symbolic: the explorer notes both sides of it
            return conclusion.when(condition)
        return conclusion if condition else True
    return condition.implies(conclusion)


@dataclass(frozen=True)
class Goal:
    """One condition of a claim with the labels of the hypotheses that it needs; the others are withheld.

    Fewer hypotheses make a stronger statement, and nonlinear goals are decided only without the irrelevant ones.
    """

    claim: Any
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Obligation:
    """Something to be shown. id: `INV-8.plateau`; claim: one sentence; about: the running functions.

    must_fail: the claim is false, and is kept with its counterexample so that nobody believes it again.
    slow: decided by `make verify-slow` alone; its proof stays in the lock for as long as its fingerprints hold.
    """

    id: str
    claim: str
    about: tuple[Function, ...]
    must_fail: bool = field(default=False, kw_only=True)
    slow: bool = field(default=False, kw_only=True)

    kind: ClassVar[str] = ""
    engine: ClassVar[str] = ""

    @property
    def invariant(self) -> str:
        return self.id.split(".", 1)[0]

    @property
    def demanded(self) -> bool:
        """Whether an invariant counts as proved only with this one shown: not what takes minutes, or a tool of its own."""
        return not self.slow


@dataclass(frozen=True)
class Exact(Obligation):
    """A claim about exact constants: true at `at`, false at each of `not_at` (so that it says something)."""

    show: Function = field(kw_only=True)
    at: Any = field(kw_only=True)
    not_at: tuple[Any, ...] = field(kw_only=True)

    kind: ClassVar[str] = "exact"
    engine: ClassVar[str] = "exact"


@dataclass(frozen=True)
class Identity(Obligation):
    """Expressions that are zero identically: `show(sympy, ops, *about)` returns them (or a mapping name -> expression)."""

    show: Function = field(kw_only=True)

    kind: ClassVar[str] = "identity"
    engine: ClassVar[str] = "sympy"


@dataclass(frozen=True)
class Formula(Obligation):
    """A theorem over reals and integers: for all variables, given -> show. Decided by Z3 on the running functions.

    variables: name -> "real" | "int". given(v) -> {label: condition}; show(v, *about) -> a condition, a Goal, or a
    sequence of these.
    sample(random) -> exact values that satisfy `given`, for translation validation.
    tangents: points at which the convexity of x ln x may be used (axioms, listed in the evidence).
    """

    variables: Mapping[str, str] = field(kw_only=True)
    show: Function = field(kw_only=True)
    sample: Callable[[Random], Mapping[str, Any]] = field(kw_only=True)
    given: Callable[[Variables], Mapping[str, Any]] = field(kw_only=True, default=lambda v: {})
    tangents: tuple[Any, ...] = field(kw_only=True, default=())

    kind: ClassVar[str] = "theorem over the reals"
    engine: ClassVar[str] = "z3"


@dataclass(frozen=True)
class FloatLaw(Obligation):
    """A law of float64: for all doubles, NaN and infinities included. Decided by Z3's floating-point theory.

    As Formula, with every variable a double and sample giving doubles. Other rounding than to nearest is not modelled.
    """

    variables: Sequence[str] = field(kw_only=True)
    show: Function = field(kw_only=True)
    sample: Callable[[Random], Mapping[str, float]] = field(kw_only=True)
    given: Callable[[Variables], Mapping[str, Any]] = field(kw_only=True, default=lambda v: {})

    kind: ClassVar[str] = "law of float64"
    engine: ClassVar[str] = "z3 fp"


@dataclass(frozen=True)
class BitLaw(Obligation):
    """A law of bit patterns in integer lanes: for all inputs of the given widths. `show(v, z3, *about)` -> condition.

    lane: the bits of a lane, into which every variable is zero-extended. given(v) as in Formula; sample gives ints for
    translation validation of the functions, called by `run(v, *about)`.
    """

    variables: Mapping[str, int] = field(kw_only=True)
    show: Function = field(kw_only=True)
    run: Function = field(kw_only=True)
    sample: Callable[[Random], Mapping[str, int]] = field(kw_only=True)
    given: Callable[[Variables], Mapping[str, Any]] = field(kw_only=True, default=lambda v: {})
    lane: int = field(kw_only=True, default=32)

    kind: ClassVar[str] = "law of bits"
    engine: ClassVar[str] = "z3 bits"


@dataclass(frozen=True)
class Checked:
    """The outcome of going through a finite domain: how many cases, and the first that fails."""

    cases: int
    failure: str | None = None


@dataclass(frozen=True)
class Exhaustive(Obligation):
    """A claim checked on every element of a finite domain. `check(*about)` -> Checked.

    rivals: wrong functions by name, in place of `about`; each must make the check fail, or the check is vacuous.
    """

    check: Callable[..., Checked] = field(kw_only=True)
    rivals: Mapping[str, tuple[Function, ...]] = field(kw_only=True)

    kind: ClassVar[str] = "exhaustive"
    engine: ClassVar[str] = "exhaustive"


@dataclass(frozen=True)
class Sweep(Obligation):
    """A claim over a finite domain too large for every day, cut into blocks. `check_block(block, *about)` -> Checked.

    Ordinarily `sample_blocks` blocks, drawn with `seed`, are checked: TESTED. With slow=True all of them are, 0 to
    blocks - 1, and a sweep that was ended goes on where it was: PROVED. rivals as in Exhaustive: the sample must find
    each of them out.
    """

    blocks: int = field(kw_only=True)
    check_block: Callable[..., Checked] = field(kw_only=True)
    rivals: Mapping[str, tuple[Function, ...]] = field(kw_only=True)
    sample_blocks: int = field(kw_only=True)
    seed: int = field(kw_only=True, default=0)

    kind: ClassVar[str] = "sweep"
    engine: ClassVar[str] = "sweep"


@dataclass(frozen=True)
class Property(Obligation):
    """A claim fuzzed with Hypothesis: TESTED, never PROVED. strategy(st) draws a value; holds(value, *about) -> bool.

    rivals as in Exhaustive: the fuzz must find each of them out.
    """

    strategy: Callable[[Any], Any] = field(kw_only=True)
    holds: Callable[..., bool] = field(kw_only=True)
    rivals: Mapping[str, tuple[Function, ...]] = field(kw_only=True)
    examples: int = field(kw_only=True, default=1000)

    kind: ClassVar[str] = "property"
    engine: ClassVar[str] = "hypothesis"


@dataclass(frozen=True)
class Counterpart:
    """A definition in Coq and the running function that it must equal, compared at exact points.

    definition: its name, `INV08_lr_band.wsd`. term: a Coq term over the carrier of rationals with the point's values in
    braces, `parts (wsd (K := on_Q) {step} {warmup})`. sample(random) -> values: Fractions, ints, bools, lists of these.
    run(values) -> what the running function gives for them, of the same kinds.
    """

    definition: str
    function: Function
    term: str
    sample: Callable[[Random], Mapping[str, Any]]
    run: Callable[[Mapping[str, Any]], Any]
    points: int = 200


@dataclass(frozen=True)
class Theorem(Obligation):
    """A theorem in Coq: `theorem` of proofs/coq/`file`.v, whose definitions are tied to running functions by counterparts.

    claim: the theorem in words. about: the running functions that its definitions stand for.
    """

    file: str = field(kw_only=True)
    theorem: str = field(kw_only=True)
    counterparts: tuple[Counterpart, ...] = field(kw_only=True, default=())

    kind: ClassVar[str] = "theorem in Coq"
    engine: ClassVar[str] = "coq"

    @property
    def demanded(self) -> bool:
        return False
