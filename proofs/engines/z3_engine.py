"""Theorems over the reals and integers, and laws of float64, decided by Z3 on the running functions.

An obligation is PROVED when every condition on every path is, every divisor is shown not to be zero, the hypotheses
have a witness, the claim fails for a function with arbitrary results (else it says nothing: VACUOUS), and the
explored paths agree with the running function. `unknown` is UNKNOWN. A model counts as a counterexample only when
the running function fails on it. The paths of a law of float64 are not compared one by one: its claim is run on
doubles.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import z3

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import FloatLaw, Formula
from karat.proofs import discipline, queries
from karat.proofs.evaluate import model_value
from karat.proofs.exploration import (
    Exploration,
    Failure,
    Outcome,
    arbitrary,
    compare_with_floats,
    compare_with_paths,
    explore,
    replay,
    run_on_numbers,
    samples,
    show_value,
)
from karat.proofs.machine_carriers import DoubleSym
from karat.proofs.real_carrier import RealSym, SymbolicOps
from karat.proofs.symbolic import SBool

RLIMIT = 40_000_000
"""Resource units per query: about ten times the most that any query of the catalogue needs."""


def resource_count(solver: Any) -> int:
    """The resource units used so far in this process: Z3 counts them up per context, not per query."""
    return next((int(value) for key, value in solver.statistics() if key == "rlimit count"), 0)


class Budget:
    """Runs queries under the limit, `times` RLIMIT, and notes the most that one of them used."""

    def __init__(self, logic: str | None, times: int = 1) -> None:
        self.logic, self.times, self.used, self._total = logic, times, 0, 0

    def check(self, *assertions: Any, purpose: str | None = None) -> tuple[str, Any]:
        """("sat" | "unsat" | "unknown", model or None). Noted for a second solver when queries are recorded."""
        solver = z3.SolverFor(self.logic) if self.logic else z3.Solver()
        solver.set("rlimit", self.times * RLIMIT)
        solver.add(*assertions)
        result = str(solver.check())
        total = resource_count(solver)
        self.used, self._total = max(self.used, total - self._total), total
        model = solver.model() if result == "sat" else None
        queries.note(assertions, result, model, purpose)
        return result, model


def prove_formula(obligation: Formula) -> Outcome:
    """Decides a theorem over reals and integers."""
    sorts = {"real": z3.Real, "int": z3.Int}
    terms = {name: sorts[sort](name) for name, sort in obligation.variables.items()}
    return _prove(obligation, terms, RealSym, SymbolicOps(obligation.tangents), Budget(None))


def prove_float_law(obligation: FloatLaw) -> Outcome:
    """Decides a law of float64."""
    terms = {name: z3.FP(name, z3.Float64()) for name in obligation.variables}
    return _prove(obligation, terms, DoubleSym, SymbolicOps(), Budget("QF_FP"))


def _prove(obligation: Any, terms: dict[str, Any], carrier: type, ops: SymbolicOps, budget: Budget) -> Outcome:
    discipline.demand(obligation.about)
    reserved = [name for name in terms if name == "phi" or not name.isidentifier()]
    if reserved:
        raise ValueError(f"{', '.join(reserved)}: a name that the carriers use, or that is none")
    checks: dict[str, str] = {}
    points = samples(obligation)
    if not obligation.must_fail:
        try:
            for point in points:
                run_on_numbers(obligation, point)
        except Failure as failure:
            return Outcome(Grade.REFUTED, "fails on a sample", failure.counterexample, checks)
    v = SimpleNamespace(**{name: carrier(term) for name, term in terms.items()}, ops=ops)
    exploration = explore(obligation, v, obligation.about)
    assumes = tuple(exploration.explorer.assumed)

    satisfiable, witness = budget.check(*exploration.hypotheses.values(), *exploration.axioms)
    checks["hypotheses satisfiable"] = _witness(satisfiable, witness, terms)
    if satisfiable != "sat":
        grade = Grade.VACUOUS if satisfiable == "unsat" else Grade.UNKNOWN
        return Outcome(grade, f"hypotheses {satisfiable}", None, checks, assumes, budget.used)

    checks["paths"] = f"{len(exploration.paths)}, complete" if _complete(exploration, budget) else "not shown complete"
    if "complete" not in checks["paths"] or checks["paths"].startswith("not"):
        return Outcome(Grade.UNKNOWN, "path conditions not shown exhaustive", None, checks, assumes, budget.used)

    outcome = _decide(obligation, exploration, terms, budget)
    outcome.checks, outcome.assumes, outcome.rlimit = checks, assumes, budget.used
    if outcome.grade is not Grade.PROVED:
        return outcome
    checks["not a tautology"] = _noticed(obligation, v, carrier, budget)
    if checks["not a tautology"] != "fails for an arbitrary function":
        outcome.grade = Grade.VACUOUS if "holds" in checks["not a tautology"] else Grade.UNKNOWN
        outcome.detail = checks["not a tautology"]
        return outcome
    if exploration.hypotheses:
        checks["hypotheses needed"] = _needed(obligation, v, budget)
    if carrier is RealSym:
        exact = compare_with_paths(obligation, exploration, points)
        floats = compare_with_floats(obligation, points)
        checks["translation validated"] = f"{exact} exact and {floats} float results at {len(points)} points"
    else:
        checks["translation validated"] = f"claim run on doubles at {len(points)} points"
    return outcome


def _witness(result: str, model: Any, terms: dict[str, Any]) -> str:
    if model is None:
        return result
    return "witness " + ", ".join(f"{name} = {show_value(model_value(model, term))}" for name, term in terms.items())


def _complete(exploration: Exploration, budget: Budget) -> bool:
    if not any(path.condition for path in exploration.paths):
        return True
    some = z3.Or(*[z3.And(*path.condition) for path in exploration.paths])
    return budget.check(*exploration.hypotheses.values(), *exploration.axioms, z3.Not(some))[0] == "unsat"


def _goals(exploration: Exploration, *, divisors: bool = True) -> list[tuple[list[Any], Any]]:
    """(assumptions, condition) for every condition and every divisor on every path."""
    goals = []
    for path in exploration.paths:
        for goal in path.value:
            labels = exploration.hypotheses if goal.needs == ("*",) else goal.needs
            hypotheses = [exploration.hypotheses[label] for label in labels]
            goals.append(([*hypotheses, *path.condition], SBool.lift(goal.claim)))
        for condition, divisor in path.divisors if divisors else ():
            zero = z3.fpIsZero(divisor) if z3.is_fp(divisor) else divisor == 0
            goals.append(([*exploration.hypotheses.values(), *condition], z3.Not(zero)))
    return goals


def _decide(obligation: Any, exploration: Exploration, terms: dict[str, Any], budget: Budget) -> Outcome:
    goals = _goals(exploration)
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


def _noticed(obligation: Any, v: Any, carrier: type, budget: Budget) -> str:
    """Whether the claim fails when the running functions return anything at all."""
    havoc = explore(obligation, v, [arbitrary(f, carrier) for f in obligation.about])
    unknown = False
    for assumptions, goal in _goals(havoc, divisors=False):
        result, _ = budget.check(*assumptions, *havoc.axioms, z3.Not(goal))
        if result == "sat":
            return "fails for an arbitrary function"
        unknown = unknown or result == "unknown"
    return "not shown to depend on the running function" if unknown else "holds for any function whatever"


def _needed(obligation: Any, v: Any, budget: Budget) -> str:
    """Whether the claim fails without its hypotheses (a theorem may hold without them: then they are redundant)."""
    try:
        free = explore(obligation, v, obligation.about, assume=False)
        goals = [(assumptions, goal) for assumptions, goal in _goals_without(free)]
    except (ArithmeticError, RuntimeError) as error:
        return f"yes: without them the function is not defined ({type(error).__name__})"
    for assumptions, goal in goals:
        if budget.check(*assumptions, *free.axioms, z3.Not(goal))[0] == "sat":
            return "yes: without them the claim fails"
    return "no: redundant, or not shown needed"


def _goals_without(exploration: Exploration) -> list[tuple[list[Any], Any]]:
    goals = []
    for path in exploration.paths:
        goals += [(list(path.condition), SBool.lift(goal.claim)) for goal in path.value]
        goals += [(list(condition), divisor != 0) for condition, divisor in path.divisors if not z3.is_fp(divisor)]
    return goals
