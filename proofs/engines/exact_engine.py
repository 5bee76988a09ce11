"""Claims about exact constants, and claims checked on every element of a finite domain."""

from __future__ import annotations

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import Checked, Exact, Exhaustive, Function
from karat.proofs.exploration import Outcome, show_value


def decide_exact(obligation: Exact, *, thorough: bool = True) -> Outcome:
    """Decides by exact arithmetic. The claim must tell `at` from every one of `not_at`, or it is vacuous."""
    holds = obligation.show(obligation.at)
    others = [obligation.show(value) for value in obligation.not_at]
    if any(type(decided) is not bool for decided in (holds, *others)):
        raise TypeError(f"the claim gives {holds!r}, {others!r}: it must decide, True or False")
    if not others or any(other == (not obligation.must_fail) for other in others):
        return Outcome(Grade.VACUOUS, "does not tell the value from others")
    checks = {"not a tautology": "decided the other way at " + "; ".join(map(show_value, obligation.not_at))}
    if holds:
        return Outcome(Grade.PROVED, f"exact arithmetic at {show_value(obligation.at)}", None, checks)
    witness = Counterexample(values={"at": show_value(obligation.at)}, reproduced=True, note="decided exactly")
    return Outcome(Grade.REFUTED, "exact arithmetic", witness, checks)


def decide_exhaustive(obligation: Exhaustive, *, thorough: bool = True) -> Outcome:
    """Goes through the domain; then the same check must find every rival out."""
    checked = _checked(obligation, obligation.about)
    if checked.failure is not None:
        witness = Counterexample(values={}, reproduced=True, note=checked.failure)
        return Outcome(Grade.REFUTED, checked.failure, witness)
    if checked.cases < 1:
        return Outcome(Grade.VACUOUS, "no case was checked")
    if not thorough:
        return Outcome(Grade.PROVED, f"all {checked.cases:,} cases")
    passed = [name for name, rival in obligation.rivals.items() if _checked(obligation, rival).failure is None]
    if passed or not obligation.rivals:
        return Outcome(Grade.VACUOUS, f"the check does not notice: {', '.join(passed) or 'no rival is given'}")
    checks = {"not a tautology": "fails for " + ", ".join(obligation.rivals)}
    return Outcome(Grade.PROVED, f"all {checked.cases:,} cases", None, checks)


def _checked(obligation: Exhaustive, functions: tuple[Function, ...]) -> Checked:
    try:
        return obligation.check(*functions)
    except (ArithmeticError, ValueError) as error:
        return Checked(0, f"raises {type(error).__name__}: {error}")
