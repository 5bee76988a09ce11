"""Guards on a live torch run: `from karat.invariants.runtime import preflight, watch`."""

from karat.invariants.run.spec import Spec
from karat.invariants.runtime.monitor import Monitor, Stopped
from karat.invariants.runtime.preflight import preflight
from karat.invariants.runtime.watch import Watch, watch

__all__ = ["Monitor", "Spec", "Stopped", "Watch", "preflight", "watch"]
