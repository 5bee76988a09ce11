"""Properties fuzzed with Hypothesis: TESTED with the number of examples, derandomised, never PROVED."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import hypothesis
from hypothesis import strategies as st

from karat.core.evidence import Counterexample, Grade
from karat.core.obligation import Property
from karat.proofs.exploration import Outcome
from karat.proofs.reach import paused, resumed

TRACED = 100
"""Examples whose lines count for the reach of tests."""


class _Falsified(AssertionError):
    """The property is false of the value."""


def fuzz(obligation: Property, *, thorough: bool = True) -> Outcome:
    """Draws examples until one fails or all hold; then the same fuzz must find every rival out."""
    count, failure = _search(obligation, obligation.about)
    if failure is not None:
        return Outcome(Grade.REFUTED, "falsified", Counterexample(values={"value": failure}, reproduced=True))
    if not thorough:
        return Outcome(Grade.TESTED, f"{count} examples, derandomised")
    missed = [name for name, rival in obligation.rivals.items() if _search(obligation, rival)[1] is None]
    if missed or not obligation.rivals:
        return Outcome(Grade.VACUOUS, f"the fuzz does not notice: {', '.join(missed) or 'no rival is given'}")
    checks = {"not a tautology": "finds out " + ", ".join(obligation.rivals)}
    return Outcome(Grade.TESTED, f"{count} examples, derandomised", None, checks)


def _search(obligation: Property, functions: tuple[Any, ...]) -> tuple[int, str | None]:
    """(examples tried, the shrunk failing value or None)."""
    count = 0
    failing: str | None = None

    @hypothesis.settings(
        max_examples=obligation.examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @hypothesis.given(obligation.strategy(st))
    def property_holds(value: Any) -> None:
        nonlocal count, failing
        count += 1
        with resumed() if count <= TRACED else nullcontext():
            held = obligation.holds(value, *functions)
        if not held:
            failing = repr(value)
            raise _Falsified(failing)

    try:
        with paused():
            property_holds()
    except _Falsified:
        return count, failing
    return count, None
