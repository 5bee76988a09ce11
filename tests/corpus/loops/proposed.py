"""Pure functions on logs that some loops need: taken from the package where it has them, else NotImplementedError.

    resume_parity(straight, resumed)  {step: loss} of a run and of one that was interrupted: equal bit for bit
    independent_seeds(runs)           {name: losses}: no two runs are one and the same
    prune_rule(rule, curves)          {name: finished losses}; rule(own losses so far, those of all at that length) -> stop?
                                      no rule stops the run that ends best

Each returns a `karat.invariants.run.finding.Finding`.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULE = "karat.invariants.run.comparisons"


def compared(guards: Any, function: str, *given: Any) -> None:
    """Calls the function on what the loop collected, and hands its finding to the guards."""
    try:
        found = getattr(importlib.import_module(MODULE), function, None)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise NotImplementedError(f"{MODULE}.{function}")
    take = getattr(guards, "take", None)
    if take is None:
        raise NotImplementedError("take(finding) of the guards")
    take(found(*given))
