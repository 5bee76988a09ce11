"""RUN-23: no output at position t depends on an input after t."""

from __future__ import annotations

import torch

from karat.invariants.run.rule import Severity
from karat.invariants.run.run23_causality import RULE as CAUSALITY
from karat.invariants.runtime.preflight.inputs import answer, differs_by_itself, jittered, next_token, others, sequence
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.probed import Probed
from karat.invariants.runtime.preflight.traces import first_difference, roughly
from karat.invariants.runtime.preflight.trees import Path, spelled

RULE = Says(CAUSALITY)


def look(subject: Probed) -> Outcome:
    """Every input after t is replaced, for three t, with noise on all weights; outputs up to t must stay as they are."""
    if subject.spec.causal is False:
        raise NotRun("Spec(causal=False)")
    call, base = jittered(subject)
    path, x = sequence(subject, call, base)
    if subject.spec.causal is None and not next_token(subject, x):
        raise NotRun("not declared, and the targets are not the inputs shifted by one; Spec(causal=True) checks it")
    length, allowed = x.shape[1], roughly(base)
    cuts = sorted({length // 4, length // 2, length - 2})
    leaks = {cut: _leak(subject, path, x, base, cut) for cut in cuts}
    worst = max(leaks, key=lambda cut: leaks[cut])
    if not RULE.holds_for(leaks[worst], allowed):
        allowed += differs_by_itself(subject, base)
    if RULE.holds_for(leaks[worst], allowed):
        return Held(f"outputs up to t stay when {spelled(path[1:])} after t changes, t = {', '.join(map(str, cuts))}")
    severity = Severity.FAIL if subject.spec.causal else Severity.WARN
    where = _where(subject, path, x, worst)
    meant = "" if subject.spec.causal else "; say Spec(causal=False) where that is meant"
    message = f"outputs at positions up to {worst} change when inputs after {worst} do: the model sees what it predicts"
    message += (f", first in {where}" if where else "") + meant
    evidence = f"largest change {leaks[worst]:.3g}, rounding allows {allowed:.3g}, length {length}"
    return [RULE.finding(severity, message, where, margin=RULE.margin(leaks[worst], allowed), evidence=evidence)]


def _edited(x: torch.Tensor, cut: int) -> torch.Tensor:
    changed = x.clone()
    changed[:, cut + 1 :] = others(x, torch.Generator().manual_seed(3))[:, cut + 1 :]
    return changed


def _leak(subject: Probed, path: Path, x: torch.Tensor, base: torch.Tensor, cut: int) -> float:
    difference = (answer(subject, {path: _edited(x, cut)}) - base)[:, : cut + 1].abs()
    counted = subject.notes.get("counted")
    if counted is not None and not subject.spec.causal:  # declared, it is to hold for what does not count too
        difference = difference[counted[:, : cut + 1]]
    largest = difference.max() if difference.numel() else difference.sum()
    return float(largest) if bool(largest.isfinite()) else float("inf")


def _where(subject: Probed, path: Path, x: torch.Tensor, cut: int) -> str:
    def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.ndim < 2 or a.shape[:2] != x.shape[:2]:
            return False
        return bool((a - b)[:, : cut + 1].abs().max() > roughly(a))

    return first_difference(subject, differ, edits={path: _edited(x, cut)})


PROBE = RULE.probe(look)
