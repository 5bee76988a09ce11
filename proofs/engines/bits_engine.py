"""Laws of bit patterns, decided by Z3 for every input: what runs on integer lanes against Z3's own rounding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import z3

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import BitLaw
from karat.core.ops import FLOAT
from karat.proofs import discipline
from karat.proofs.engines.budget import Budget
from karat.proofs.evaluate import model_value
from karat.proofs.exploration import Outcome, samples
from karat.proofs.machine_carriers import BitSym
from karat.proofs.real_carrier import SymbolicOps
from karat.proofs.symbolic import Explorer, SBool


def prove_bit_law(obligation: BitLaw, *, thorough: bool = True) -> Outcome:
    """Decides a law for all values of its variables; each is zero-extended into a lane."""
    if obligation.must_fail:
        raise ValueError("a law of bits cannot be kept as a refutation: its inputs are not replayed on the claim")
    discipline.demand(obligation.about)
    raised = _raises(obligation)
    if raised is not None:
        return Outcome(Grade.REFUTED, "fails on a sample", raised)
    narrow = {name: z3.BitVec(name, width) for name, width in obligation.variables.items()}
    v = SimpleNamespace(**_lanes(obligation, narrow), ops=SymbolicOps())
    explorer = Explorer([])
    hypotheses = explorer.run(lambda: [SBool.lift(c) for c in obligation.given(v).values()])
    if len(hypotheses) != 1:
        raise ValueError("hypotheses must not branch: join conditions with & instead of `and` or a chain")
    given = hypotheses[0].value
    paths = explorer.run(lambda: obligation.show(v, z3, *obligation.about))
    checks = {"paths": str(len(paths))}
    budget = Budget("QF_FP", times=10)

    if budget.check(*given, purpose="hypotheses")[0] != "sat":
        return Outcome(Grade.VACUOUS, "no input satisfies the hypotheses", None, checks)
    if any(path.condition for path in paths):
        some = z3.Or(*[z3.And(*path.condition) for path in paths])
        if budget.check(*given, z3.Not(some), purpose="completeness")[0] != "unsat":
            return Outcome(Grade.UNKNOWN, "path conditions not shown exhaustive", None, checks, rlimit=budget.used)
    for path in paths:
        result, model = budget.check(*given, *path.condition, z3.Not(_term(path.value)), purpose="goal")
        if result == "sat":
            values = {name: model_value(model, term) for name, term in narrow.items()}
            return Outcome(
                Grade.REFUTED, "Z3 found an input", _reproduce(obligation, values), checks, rlimit=budget.used
            )
        if result != "unsat":
            return Outcome(Grade.UNKNOWN, "undecided within the resource limit", None, checks, rlimit=budget.used)

    inputs = " x ".join(f"2^{width}" for width in obligation.variables.values())
    if not thorough:
        return Outcome(Grade.PROVED, f"all {inputs} inputs", None, checks, rlimit=budget.used)
    havoc = [_arbitrary(f, place, obligation.lane) for place, f in enumerate(obligation.about)]
    loose = explorer.run(lambda: obligation.show(v, z3, *havoc))
    differs = ([*given, *path.condition, z3.Not(_term(path.value))] for path in loose)
    if not any(budget.check(*terms, purpose="arbitrary function")[0] == "sat" for terms in differs):
        return Outcome(Grade.VACUOUS, "holds for any function whatever", None, checks, rlimit=budget.used)
    checks["not a tautology"] = "fails for an arbitrary function"
    if given:
        checks["hypotheses needed"] = _needs(list(obligation.given(v)), given, paths, budget)
    checks["translation validated"] = _validate(obligation, narrow, paths)
    return Outcome(Grade.PROVED, f"all {inputs} inputs", None, checks, rlimit=budget.used)


def _needs(labels: list[str], given: list[Any], paths: list[Any], budget: Budget) -> str:
    """Which hypotheses the law fails without, and which it does not need; as for theorems over the reals."""
    found: dict[str, list[str]] = {}
    for place, label in enumerate(labels):
        others = [term for k, term in enumerate(given) if k != place]
        differs = ([*others, *path.condition, z3.Not(_term(path.value))] for path in paths)
        answers = {budget.check(*terms, purpose="needed")[0] for terms in differs}
        answer = "needed" if "sat" in answers else "redundant" if answers == {"unsat"} else "not shown needed"
        found.setdefault(answer, []).append(label)
    return ". ".join(f"{answer}: {'; '.join(names)}" for answer, names in found.items())


def _raises(obligation: BitLaw) -> Counterexample | None:
    """The first sample on which a running function raises."""
    for point in samples(obligation):
        try:
            obligation.run(SimpleNamespace(**point, ops=FLOAT), *obligation.about)
        except (ArithmeticError, ValueError) as error:
            shown = {name: hex(value) for name, value in point.items()}
            return Counterexample(values=shown, reproduced=True, note=f"raises {type(error).__name__}: {error}")
    return None


def _term(value: Any) -> Any:
    return value.e if isinstance(value, SBool) else value


def _lanes(obligation: BitLaw, narrow: dict[str, Any]) -> dict[str, BitSym]:
    return {name: BitSym(z3.ZeroExt(obligation.lane - term.size(), term)) for name, term in narrow.items()}


def _arbitrary(function: Any, place: int, lane: int) -> Any:
    """A function of which nothing is known: equal arguments, equal results; other arguments, any other result."""
    names: dict[tuple[str, ...], str] = {}

    def any_result(*arguments: Any) -> Any:
        key = tuple(a.e.sexpr() if isinstance(a, BitSym) else repr(a) for a in arguments)
        name = names.setdefault(key, f"arbitrary!{place}!{len(names)}")
        truth = isinstance(function(*arguments), SBool)
        return SBool(z3.Bool(name)) if truth else BitSym(z3.BitVec(name, lane))

    return any_result


def _reproduce(obligation: BitLaw, values: dict[str, int]) -> Counterexample:
    """The input tried on Python ints: the result of the running functions is shown beside it."""
    result = obligation.run(SimpleNamespace(**values, ops=FLOAT), *obligation.about)
    shown = {name: hex(value) for name, value in values.items()}
    return Counterexample(values=shown, reproduced=True, note=f"the running function gives {result!r}")


def _validate(obligation: BitLaw, narrow: dict[str, Any], paths: list[Any]) -> str:
    """The running functions on Python ints equal their symbolic reading at every sample."""
    v = SimpleNamespace(**_lanes(obligation, narrow), ops=SymbolicOps())
    symbolic = Explorer([]).run(lambda: obligation.run(v, *obligation.about))[0].value
    points = samples(obligation)
    for point in points:
        ran = obligation.run(SimpleNamespace(**point, ops=FLOAT), *obligation.about)
        pairs = [(narrow[name], z3.BitVecVal(value, narrow[name].size())) for name, value in point.items()]
        explored = z3.simplify(z3.substitute(symbolic.e, *pairs)).as_long()
        if explored != ran & ((1 << obligation.lane) - 1):
            raise ValueError(f"explored {explored:#x}, ran {ran:#x} at {point}")
    return f"{len(points)} points"
