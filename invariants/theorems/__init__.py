"""Theorems in Coq behind the invariants: one module each, with the running functions that its definitions stand for."""

from __future__ import annotations

from typing import Any

from karat.invariants.theorems import inv01, inv02, inv04, inv05, inv07, inv08, inv10, inv11

MODULES: dict[str, Any] = {f"INV-{int(module.__name__[-2:])}": module for module in (inv01, inv02, inv04, inv05, inv07, inv08, inv10, inv11)}
"""Invariant id -> the module of its THEOREMS."""
