"""Z3 as a judge of a ledger's claims: validity of a condition, and the verdict on an obligation of the catalogue."""

from __future__ import annotations

from typing import Any

import z3

from karat.core.evidence import Grade
from karat.core.obligation import Formula, Obligation
from karat.invariants import inv02_asha_threshold, inv08_lr_band
from karat.proofs.engines.z3_engine import prove_formula


def valid(condition: Any) -> bool:
    """Whether a condition holds for all values of its variables. ArithmeticError when Z3 cannot say."""
    solver = z3.Solver()
    solver.set("rlimit", 20_000_000)  # a budget that does not depend on the machine
    solver.add(z3.Not(condition))
    result = solver.check()
    if result == z3.unknown:
        raise ArithmeticError(f"Z3 cannot say: {solver.reason_unknown()}")
    return bool(result == z3.unsat)


def obligation(name: str) -> Formula:
    """The obligation of INV-2 or INV-8 with this id."""
    known: tuple[Obligation, ...] = inv02_asha_threshold.OBLIGATIONS + inv08_lr_band.OBLIGATIONS
    (found,) = (o for o in known if o.id == name and isinstance(o, Formula))
    return found


def proved(name: str) -> bool:
    """Whether Z3 proves this obligation now; False when it finds a counterexample that the running function confirms."""
    outcome = prove_formula(obligation(name))
    if outcome.grade is Grade.PROVED:
        return True
    if outcome.grade is Grade.REFUTED and outcome.counterexample is not None and outcome.counterexample.reproduced:
        return False
    raise ArithmeticError(f"{name}: {outcome.grade.name}, {outcome.detail}")
