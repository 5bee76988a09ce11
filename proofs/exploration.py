"""What the Z3 engines share: a claim run on numbers, a claim explored on carriers, and the two compared.

Translation validation: on each sample the claim is run on exact numbers; exactly one explored path must be taken
there, and every result that a running function returned on that path, evaluated at the sample, must be the number
that the function returned. That is what makes the carriers themselves trustworthy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

import z3

from karat.core.evidence import Counterexample, Grade
from karat.core.golden import Golden
from karat.core.obligation import Goal
from karat.core.ops import FLOAT
from karat.proofs.evaluate import evaluate
from karat.proofs.machine_carriers import DoubleSym
from karat.proofs.reach import resumed
from karat.proofs.real_carrier import RealSym, lift
from karat.proofs.symbolic import Explorer, Path, SBool, current

SAMPLES = 40
SEED = 20_260_101


@dataclass
class Outcome:
    """What an engine found out; the verifier makes Evidence of it."""

    grade: Grade
    detail: str = ""
    counterexample: Counterexample | None = None
    checks: dict[str, str] = field(default_factory=dict)
    assumes: tuple[str, ...] = ()
    rlimit: int | None = None


class Failure(Exception):
    """The claim fails on concrete values: a counterexample that needs no solver."""

    def __init__(self, values: Mapping[str, Any], note: str) -> None:
        super().__init__(note)
        self.counterexample = Counterexample(
            values={k: show_value(x) for k, x in values.items()}, reproduced=True, note=note
        )


class OutsideHypotheses(ValueError):
    """A sample that does not satisfy the hypotheses: either it is wrong, or nothing satisfies them."""


def show_value(value: Any) -> str:
    """A value as it is printed in a report: exact, with a decimal when that helps."""
    if isinstance(value, Fraction) and value.denominator > 1:
        return f"{value} ({float(value):.6g})"
    return str(value)


def conditions(claim: Any) -> list[Goal]:
    """The conditions of a claim as goals; no needs means all hypotheses."""
    if isinstance(claim, Goal):
        return [claim]
    if isinstance(claim, (list, tuple)):
        return [goal for part in claim for goal in conditions(part)]
    return [Goal(claim, ("*",))]


@dataclass(frozen=True)
class Call:
    """One call of a running function."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: Any


def recording(function: Callable[..., Any], calls: Callable[[], list[Any]]) -> Callable[..., Any]:
    """The function, with every call appended to calls()."""

    def recorded(*arguments: Any) -> Any:
        with resumed():
            result = function(*arguments)
        calls().append(Call(function, arguments, result))
        return result

    return recorded


def exact(value: Any) -> Any:
    """An int as a Fraction, so that int / int is exact; anything else as it is."""
    return Fraction(value) if isinstance(value, int) and not isinstance(value, bool) else value


def run_on_numbers(obligation: Any, values: Mapping[str, Any], *, hypotheses_must_hold: bool = True) -> list[Call]:
    """The claim on exact numbers: returns the calls of the running functions; Failure when the claim is false."""
    calls: list[Call] = []
    v = SimpleNamespace(**{name: exact(value) for name, value in values.items()}, ops=FLOAT)
    for label, condition in obligation.given(v).items():
        if not condition:
            if hypotheses_must_hold:
                raise OutsideHypotheses(f"the sample {dict(values)} does not satisfy the hypothesis {label!r}")
            return calls
    functions = [recording(f, lambda: calls) for f in obligation.about]
    try:
        goals = conditions(obligation.show(v, *functions))
    except (ArithmeticError, ValueError, IndexError) as error:
        raise Failure(values, f"raises {type(error).__name__}: {error}") from error
    for place, goal in enumerate(goals):
        if not goal.claim:
            raise Failure(values, f"condition {place + 1} of {len(goals)} is false")
    return calls


def samples(obligation: Any) -> list[dict[str, Any]]:
    """The sample points of an obligation, restricted to its variables: the same at every run."""
    random = Random(SEED)
    return [
        {name: value for name, value in obligation.sample(random).items() if name in obligation.variables}
        for _ in range(SAMPLES)
    ]


def replay(obligation: Any, values: Mapping[str, Any]) -> Counterexample:
    """A model's values tried on the real functions: reproduced when the hypotheses hold there and the claim fails."""
    shown = {k: show_value(x) for k, x in values.items()}
    try:
        run_on_numbers(obligation, values, hypotheses_must_hold=False)
    except Failure as failure:
        return failure.counterexample
    return Counterexample(values=shown, reproduced=False, note="the running functions do not fail there")


@dataclass
class Exploration:
    """A claim explored: hypotheses by label, the paths, and the facts that the carriers instantiated."""

    hypotheses: dict[str, Any]
    paths: list[Path]
    explorer: Explorer

    @property
    def axioms(self) -> list[Any]:
        return list(self.explorer.axioms.values())


def explore(obligation: Any, v: Any, functions: Sequence[Callable[..., Any]]) -> Exploration:
    """Runs given and show on carriers along every path."""
    first = Explorer([], phase="given")
    given = first.run(lambda: obligation.given(v))
    if len(given) != 1:
        raise ValueError("hypotheses must not branch: join conditions with & instead of `and` or a chain")
    hypotheses = {label: SBool.lift(condition) for label, condition in given[0].value.items()}
    explorer = Explorer([*hypotheses.values(), *first.axioms.values()], phase="show", axioms=dict(first.axioms))
    explorer.assumed.update(first.assumed)
    recorded = [recording(f, lambda: current().calls) for f in functions]
    paths = explorer.run(lambda: conditions(obligation.show(v, *recorded)))
    return Exploration(hypotheses, paths, explorer)


def flatten(value: Any) -> list[Any]:
    """The leaves of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flatten(item)]
    return [value]


def arbitrary(function: Callable[..., Any], carrier: type) -> Callable[..., Any]:
    """A function of the same shape whose every result is unconstrained: what a claim must notice."""
    count = 0

    def fresh(like: Any) -> Any:
        nonlocal count
        count += 1
        if isinstance(like, (list, tuple)):
            return [fresh(item) for item in like]
        if isinstance(like, (bool, SBool)):
            return SBool(z3.Bool(f"arbitrary!{id(function)}!{count}"))
        if carrier is DoubleSym:
            return DoubleSym(z3.FP(f"arbitrary!{id(function)}!{count}", z3.Float64()))
        return RealSym(z3.Real(f"arbitrary!{id(function)}!{count}"))

    return lambda *arguments, **named: fresh(function(*arguments, **named))


def close(a: Any, b: Any, tolerance: float) -> bool:
    """Equality for exact numbers and truth values; for floats, equality up to a relative tolerance."""
    if isinstance(a, (int, Fraction, Golden)) and isinstance(b, (int, Fraction, Golden)):
        return bool(a == b)
    x, y = float(a), float(b)
    return x == y or (math.isnan(x) and math.isnan(y)) or abs(x - y) <= tolerance * max(1.0, abs(x), abs(y))


def compare_with_paths(obligation: Any, exploration: Exploration, points: list[dict[str, Any]]) -> int:
    """Compares the explored paths with the running functions at the points; returns how many results agreed.

    ValueError when the symbolic reading differs from what runs: then nothing that was proved counts.
    """
    agreed = 0
    for point in points:
        calls = flatten([call.result for call in run_on_numbers(obligation, point)])
        taken = [p for p in exploration.paths if all(evaluate(c, point) for c in p.condition)]
        if len(taken) != 1:
            raise ValueError(f"{len(taken)} paths are taken at {point}, not one")
        symbolic = flatten([call.result for call in taken[0].calls])
        if len(symbolic) != len(calls):
            raise ValueError(f"{len(symbolic)} results on the path taken at {point}, {len(calls)} when run")
        for explored, ran in zip(symbolic, calls, strict=True):
            value = evaluate(explored.e if isinstance(explored, SBool) else lift_result(explored), point)
            if not close(value, ran, 1e-12):
                raise ValueError(f"explored {value}, ran {ran} at {point}")
            agreed += 1
    return agreed


def lift_result(value: Any) -> Any:
    """A result of an exploration as a term; literals that a path returned are lifted exactly."""
    if isinstance(value, bool):
        return z3.BoolVal(value)
    if isinstance(value, RealSym):
        return value.e
    return lift_constant(value)


def lift_constant(value: Any) -> Any:
    """A literal as a term, outside an exploration."""
    outcome = Explorer([]).run(lambda: lift(value))
    return outcome[0].value


def compare_with_floats(obligation: Any, points: list[dict[str, Any]]) -> int:
    """Repeats every call in floating point: numbers must agree to 1e-9; returns how many did."""
    agreed = 0
    for point in points:
        for call in run_on_numbers(obligation, point):
            repeated = call.function(*map(_floating, call.arguments))
            for ideal, ran in zip(flatten(call.result), flatten(repeated), strict=True):
                if isinstance(ideal, bool):
                    continue  # a decision at a tie may fall differently
                if not close(float(ideal), float(ran), 1e-9):
                    raise ValueError(f"exact {ideal}, in float64 {ran} at {point}")
                agreed += 1
    return agreed


def _floating(value: Any) -> Any:
    """Exact numbers as floats (integers stay integers), inside lists too."""
    if isinstance(value, (list, tuple)):
        return [_floating(item) for item in value]
    if isinstance(value, Fraction) and value.denominator == 1:
        return int(value)
    return float(value) if isinstance(value, (Fraction, Golden)) else value
