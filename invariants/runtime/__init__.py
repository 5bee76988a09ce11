"""Guards on a live torch run: `from karat.invariants.runtime import preflight, watch`."""

from karat.invariants.run.spec import Spec, Suppression
from karat.invariants.runtime.independent import independent
from karat.invariants.runtime.monitor import Monitor, Stopped
from karat.invariants.runtime.parity import ParityReport, resume_parity
from karat.invariants.runtime.preflight import preflight
from karat.invariants.runtime.watch import Watch, watch

__all__ = [
    "Monitor", "ParityReport", "Spec", "Stopped", "Suppression", "Watch", "independent", "preflight", "resume_parity", "watch",
]  # fmt: skip
