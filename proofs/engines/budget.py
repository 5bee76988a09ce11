"""Queries to Z3 under a resource limit: the same query uses the same resources on every machine."""

from __future__ import annotations

from typing import Any

import z3

from karat.proofs import queries
from karat.proofs.engines.differences import Differences

RLIMIT = 40_000_000
"""Resource units per query: about ten times the most that any query of the catalogue needs."""


def resource_count(solver: Any) -> int:
    """The resource units used so far in this process: Z3 counts them up per context, not per query."""
    return next((int(value) for key, value in solver.statistics() if key == "rlimit count"), 0)


class Budget:
    """Runs queries under the limit, `times` RLIMIT, and notes the most that one of them used."""

    def __init__(self, logic: str | None, times: int = 1) -> None:
        self.logic, self.times, self.used, self._total = logic, times, 0, 0
        self._differences = Differences()

    def check(self, *assertions: Any, purpose: str | None = None) -> tuple[str, Any]:
        """("sat" | "unsat" | "unknown", model or None). Noted for a second solver when queries are recorded."""
        found = self._differences.by_sign(assertions, self.ask) if self.logic == "QF_FP" else None
        result, model = found or self.ask(*assertions)
        queries.note(assertions, result, model, purpose)
        return result, model

    def ask(self, *assertions: Any) -> tuple[str, Any]:
        """The same, with the bits of every operation, and not noted."""
        solver = z3.SolverFor(self.logic) if self.logic else z3.Solver()
        solver.set("rlimit", self.times * RLIMIT)
        solver.add(*assertions)
        result = str(solver.check())
        total = resource_count(solver)
        self.used, self._total = max(self.used, total - self._total), total
        return result, solver.model() if result == "sat" else None
