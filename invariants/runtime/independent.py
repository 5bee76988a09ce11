"""independent: the reports of several watched runs, and which of them are one (RUN-45)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from karat.invariants.run.finding import Finding, decided, undecided
from karat.invariants.run.rule import Severity
from karat.invariants.run.run45_seeds import RULE
from karat.invariants.runtime.watching.report import WatchReport


def independent(reports: Iterable[WatchReport]) -> Finding:
    """RUN-45: no two runs started from the same weights with the same first batch.

    Equal weights with another first batch are a WARN: a fine-tuning starts all runs from one set of weights. Not decided for
    fewer than two runs whose weights are known.
    """
    held = list(reports)
    runs = [(place, r.fingerprint["weights"], r.fingerprint.get("batch", "")) for place, r in enumerate(held)
            if r.fingerprint.get("weights")]  # fmt: skip
    required = RULE.statement
    if len(runs) < 2:
        return undecided(RULE.id, Severity.FAIL, f"{len(runs)} runs whose weights were seen; two are needed", required)
    pairs = list(itertools.combinations(runs, 2))
    alike = [(a, b) for a, b in pairs if a[1] == b[1]]
    one = [(a, b) for a, b in alike if a[2] and a[2] == b[2]]
    if one:
        seen = f"runs {_listed(one)}: the same initial weights and the same first batch"
    elif alike:
        seen = f"runs {_listed(alike)}: the same initial weights, other first batches or none seen"
    else:
        seen = f"{len(runs)} runs start from other weights each"
    severity = Severity.WARN if alike and not one else Severity.FAIL
    return decided(RULE.id, severity, not alike, seen, required, rows=len(runs), where=_listed(one or alike))


def _listed(pairs: list[tuple[tuple[int, str, str], tuple[int, str, str]]]) -> str:
    """Runs by their place, counted from 1."""
    return "; ".join(f"{a[0] + 1} and {b[0] + 1}" for a, b in pairs[:4])
