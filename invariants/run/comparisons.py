"""What the logs of several runs say of each other: a resumed run is the uninterrupted one, independent runs are not one.

Pure functions on losses. With the objects themselves more is seen: `resume_parity` and `independent` in
`karat.invariants.runtime`. The prune rule of a search is in pruning.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from karat.invariants.run.finding import Finding, decided, undecided
from karat.invariants.run.pruning import prune_rule
from karat.invariants.run.rule import Severity
from karat.invariants.run.run42_resume import RULE as RESUME
from karat.invariants.run.run45_seeds import RULE as SEEDS

__all__ = ["independent_seeds", "prune_rule", "resume_parity"]

LEAST_ROWS = 3
"""Rows that two logs must have in common before they are called one."""


def resume_parity(straight: Mapping[int, float], resumed: Mapping[int, float], tolerance: float = 0.0) -> Finding:
    """RUN-42 of two logs, step -> loss: where both have a step the losses are equal, bit for bit unless told otherwise.

    tolerance: the largest relative difference. Not decided where the logs have no step in common.
    """
    within = f"within {tolerance:g} of each other" if tolerance else "equal bit for bit"
    required = f"the losses of the resumed run are {within} to those of the uninterrupted one"
    common = sorted(set(straight) & set(resumed))
    if not common:
        return undecided(RESUME.id, Severity.FAIL, "the logs have no step in common", required)
    apart = [step for step in common if not _alike(straight[step], resumed[step], tolerance)]
    if not apart:
        return decided(RESUME.id, Severity.FAIL, True, f"{len(common)} steps are", required, rows=len(common))
    step = apart[0]
    seen = f"at step {step} the loss is {resumed[step]:.8g} where the uninterrupted run has {straight[step]:.8g}"
    if len(apart) > 1:
        seen += f"; {len(apart)} of {len(common)} steps differ"
    return decided(RESUME.id, Severity.FAIL, False, seen, required, rows=len(common), where=f"step {step}")


def independent_seeds(runs: Mapping[str, Sequence[float]]) -> Finding:
    """RUN-45 of logs, name -> losses: no two runs log the same losses, row for row, as far as both go.

    Not decided for fewer than two runs, or where no pair has three rows in common.
    """
    required = "no two runs log the same losses"
    pairs = [(a, b) for a, b in itertools.combinations(runs, 2) if min(len(runs[a]), len(runs[b])) >= LEAST_ROWS]
    if not pairs:
        return undecided(
            SEEDS.id, Severity.FAIL, f"{len(runs)} runs, none two of them with {LEAST_ROWS} rows", required
        )
    one = [(a, b) for a, b in pairs if _one(runs[a], runs[b])]
    if not one:
        return decided(SEEDS.id, Severity.FAIL, True, f"{len(runs)} runs differ", required, rows=len(runs))
    listed = "; ".join(f"{a} and {b}" for a, b in one[:4])
    rows = min(len(runs[name]) for name in one[0])
    seen = f"{listed}: the same losses in all {rows} rows that they have in common"
    return decided(SEEDS.id, Severity.FAIL, False, seen, required, rows=len(runs), where=listed)


def _one(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two logs are equal as far as both go, and vary at all."""
    pairs = list(zip(first, second, strict=False))
    return all(_alike(a, b, 0.0) for a, b in pairs) and len({a for a, _ in pairs}) >= LEAST_ROWS


def _alike(a: float, b: float, tolerance: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b))
