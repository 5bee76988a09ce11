"""Theorems in Coq behind the invariants: one module each, with the running functions that its definitions stand for."""

from __future__ import annotations

from karat.core.obligation import Obligation
from karat.invariants.theorems import inv01, inv02, inv03, inv04, inv05, inv06, inv07, inv08, inv09, inv10, inv11

_MODULES = (inv01, inv02, inv03, inv04, inv05, inv06, inv07, inv08, inv09, inv10, inv11)
THEOREMS: dict[str, tuple[Obligation, ...]] = {
    f"INV-{number}": module.THEOREMS for number, module in enumerate(_MODULES, start=1)
}
"""Invariant id -> its theorems."""
