"""The always-on guards of any training loop: `from karat.invariants.runtime import watch`."""
