"""Theorems in Coq behind the invariants: one module each, with the running functions that its definitions stand for."""
