"""Active probes before any compute is spent: `from karat.invariants.runtime import preflight`."""

from karat.invariants.run.rule import Severity
from karat.invariants.run.spec import Spec, Suppression
from karat.invariants.runtime.preflight.report import Finding, Report
from karat.invariants.runtime.preflight.run import PROBES, preflight

__all__ = ["Finding", "PROBES", "Report", "Severity", "Spec", "Suppression", "preflight"]
