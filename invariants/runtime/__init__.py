"""Guards on a live torch run: `from karat.invariants.runtime import watch`."""

from karat.invariants.runtime.monitor import Monitor, Stopped
from karat.invariants.runtime.watch import Watch, watch

__all__ = ["Monitor", "Stopped", "Watch", "watch"]
