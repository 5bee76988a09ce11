"""Theorems over the reals and integers, and laws of float64, decided by Z3 on the running functions.

An obligation is PROVED when every condition on every path is, every divisor is shown not to be zero, the hypotheses
have a witness, the claim fails for a function with arbitrary results (else it says nothing: VACUOUS), and the
explored paths agree with the running function. `unknown` is UNKNOWN. A model counts as a counterexample only when
the running function fails on it. The paths of a law of float64 are not compared one by one: its claim is run on
doubles.
"""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import z3

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import FloatLaw, Formula
from karat.proofs import discipline
from karat.proofs.engines.budget import RLIMIT, Budget
from karat.proofs.engines.vacuity import NOTICED, goals_of, needs, notices, sides
from karat.proofs.evaluate import model_value
from karat.proofs.exploration import (
    Exploration,
    Failure,
    Outcome,
    OutsideHypotheses,
    compare_with_floats,
    compare_with_paths,
    explore,
    replay,
    run_on_numbers,
    samples,
    show_value,
)
from karat.proofs.machine_carriers import DoubleSym
from karat.proofs.reach import paused
from karat.proofs.real_carrier import RealSym, SymbolicOps, rational


def prove_formula(obligation: Formula, *, thorough: bool = True) -> Outcome:
    """Decides a theorem over reals and integers. Not thorough: the claim alone, without the checks on it."""
    sorts = {"real": z3.Real, "int": z3.Int}
    terms = {name: sorts[sort](name) for name, sort in obligation.variables.items()}
    with paused():
        return _prove(obligation, terms, RealSym, SymbolicOps(obligation.tangents), Budget(None), thorough)


def prove_float_law(obligation: FloatLaw, *, thorough: bool = True) -> Outcome:
    """Decides a law of float64; thorough as above."""
    terms = {name: z3.FP(name, z3.Float64()) for name in obligation.variables}
    with paused():
        return _prove(obligation, terms, DoubleSym, SymbolicOps(), Budget("QF_FP"), thorough)


def _prove(
    obligation: Any, terms: dict[str, Any], carrier: type, ops: SymbolicOps, budget: Budget, thorough: bool
) -> Outcome:
    discipline.demand(obligation.about)
    reserved = [name for name in terms if name == "phi" or not name.isidentifier()]
    if reserved:
        raise ValueError(f"{', '.join(reserved)}: a name that the carriers use, or that is none")
    checks: dict[str, str] = {}
    points = samples(obligation)
    outside: OutsideHypotheses | None = None
    if not obligation.must_fail:
        try:
            for point in points:
                run_on_numbers(obligation, point)
        except Failure as failure:
            return Outcome(Grade.REFUTED, "fails on a sample", failure.counterexample, checks)
        except OutsideHypotheses as error:
            outside = error
    v = SimpleNamespace(**{name: carrier(term) for name, term in terms.items()}, ops=ops)
    exploration = explore(obligation, v, obligation.about)
    assumes = tuple(exploration.explorer.assumed)

    satisfiable, witness = budget.check(*exploration.hypotheses.values(), *exploration.axioms)
    checks["hypotheses satisfiable"] = _witness(satisfiable, witness, terms)
    if satisfiable != "sat":
        grade = Grade.VACUOUS if satisfiable == "unsat" else Grade.UNKNOWN
        detail = "the hypotheses contradict each other" if satisfiable == "unsat" else "hypotheses undecided"
        return Outcome(grade, detail, None, checks, assumes, budget.used)
    if outside is not None:
        raise outside

    checks["paths"] = f"{len(exploration.paths)}, complete" if _complete(exploration, budget) else "not shown complete"
    if "complete" not in checks["paths"] or checks["paths"].startswith("not"):
        return Outcome(Grade.UNKNOWN, "path conditions not shown exhaustive", None, checks, assumes, budget.used)

    if not any(path.value for path in exploration.paths):
        return Outcome(Grade.VACUOUS, "states no condition", None, checks, assumes, budget.used)
    outcome = _decide(obligation, exploration, terms, budget)
    outcome.checks, outcome.assumes, outcome.rlimit = checks, assumes, budget.used
    if outcome.grade is Grade.PROVED and thorough:
        _question(outcome, obligation, exploration, v, carrier, budget, points)
    outcome.rlimit = budget.used
    return outcome


def _question(
    outcome: Outcome,
    obligation: Any,
    exploration: Exploration,
    v: Any,
    carrier: type,
    budget: Budget,
    points: list[Any],
) -> None:
    """Whether a proof says anything: against an arbitrary function, on both sides of its conditions, without hypotheses."""
    checks = outcome.checks
    checks["not a tautology"] = notices(obligation, v, carrier, budget)
    if checks["not a tautology"] != NOTICED:
        outcome.grade = Grade.VACUOUS if "holds" in checks["not a tautology"] else Grade.UNKNOWN
        outcome.detail = checks["not a tautology"]
        return
    terms = {name: getattr(v, name).e for name in obligation.variables}
    values = [
        [(terms[name], _numeral(value, terms[name])) for name, value in point.items()]
        for point in points
        if all(isinstance(value, (int, float, Fraction)) for value in point.values())
    ]
    reached, missed = sides(exploration, budget, values)
    if reached or missed:
        checks["both sides"] = f"{reached} of {reached + len(missed)} sides of its conditions are reached"
    if missed:
        outcome.grade, outcome.detail = Grade.VACUOUS, f"never reached: {', '.join(missed)}"
        return
    if exploration.hypotheses:
        checks["hypotheses needed"] = needs(obligation, v, exploration, budget, points)
    if carrier is RealSym:
        exact = compare_with_paths(obligation, exploration, points)
        floats = compare_with_floats(obligation, points)
        checks["translation validated"] = f"{exact} exact and {floats} float results at {len(points)} points"
    else:
        checks["translation validated"] = f"claim run on doubles at {len(points)} points"


def _numeral(value: Any, term: Any) -> Any:
    """A sample's value as a term of the variable's sort."""
    if z3.is_fp(term):
        return z3.FPVal(float(value), term.sort())
    return z3.IntVal(value) if z3.is_int(term) else rational(value)


def _witness(result: str, model: Any, terms: dict[str, Any]) -> str:
    if model is None:
        return result
    return "witness " + ", ".join(f"{name} = {show_value(model_value(model, term))}" for name, term in terms.items())


def _complete(exploration: Exploration, budget: Budget) -> bool:
    if not any(path.condition for path in exploration.paths):
        return True
    some = z3.Or(*[z3.And(*path.condition) for path in exploration.paths])
    return budget.check(*exploration.hypotheses.values(), *exploration.axioms, z3.Not(some))[0] == "unsat"


def _decide(obligation: Any, exploration: Exploration, terms: dict[str, Any], budget: Budget) -> Outcome:
    goals = goals_of(exploration)
    unknown = 0
    abstract: Counterexample | None = None
    for assumptions, goal in goals:
        result, model = budget.check(*assumptions, *exploration.axioms, z3.Not(goal))
        if result == "sat":
            values = {name: model_value(model, term) for name, term in terms.items()}
            counterexample = replay(obligation, values)
            if counterexample.reproduced:
                return Outcome(Grade.REFUTED, "counterexample reproduced on the running function", counterexample)
            abstract = counterexample
        elif result == "unknown":
            unknown += 1
    if abstract is not None:
        return Outcome(Grade.UNKNOWN, "a model that the running function does not reproduce", abstract)
    if unknown:
        return Outcome(Grade.UNKNOWN, f"{unknown} of {len(goals)} conditions undecided within {RLIMIT} units")
    return Outcome(Grade.PROVED, f"{len(goals)} conditions on {len(exploration.paths)} paths")
