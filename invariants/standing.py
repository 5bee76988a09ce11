"""What is proved of an invariant as it is now: the proof lock compared with the fingerprints of the running functions.

`make verify` writes invariants/proofs.lock; a run reads it. An obligation whose functions changed since, or which the
lock does not have, is UNPROVED, and strict does not start on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from karat.core.errors import EvidenceError
from karat.core.invariant import Invariant
from karat.core.obligation import Obligation
from karat.core.provenance import fingerprint, qualified_name
from karat.core.report import ProofLock, ProofStatus, read_lock

LOCK = Path(__file__).with_name("proofs.lock")
UNPROVED = "UNPROVED"


def fingerprints(obligation: Obligation) -> dict[str, str]:
    """Qualified name -> fingerprint of every function that an obligation rests on.

    These are the running functions it is about, and those that state the claim: a claim that was weakened after the
    proof is as stale as a formula that was changed.
    """
    found = {qualified_name(function): fingerprint(function) for function in obligation.about}
    for part in ("show", "given", "check", "holds", "run"):
        function: Callable[..., Any] | None = getattr(obligation, part, None)
        if function is not None:
            found[f"{qualified_name(function)} ({part})"] = fingerprint(function)
    return found


def standing(invariant: Invariant, lock: ProofLock | None) -> ProofStatus:
    """The standing of one invariant: PROVED or TESTED when every obligation was shown of the code as it is, else UNPROVED."""
    shown = lock.proofs.get(invariant.id, {}) if lock else {}
    stale: dict[str, None] = {}
    missing, engines, grades = [], Counter[str](), Counter[str]()
    for obligation in invariant.obligations:
        proof = shown.get(obligation.id)
        if proof is None:
            missing.append(obligation.id)
            continue
        now = fingerprints(obligation)
        stale.update(dict.fromkeys(name for name in now if proof.about.get(name) != now[name]))
        engines[proof.engine] += 1
        grades["refuted" if obligation.must_fail else proof.grade] += 1
    grade = UNPROVED if stale or missing else ("PROVED" if grades["PROVED"] else "TESTED")
    return ProofStatus(
        invariant=invariant.id,
        grade=grade,
        engines=tuple(engines),
        shown=grades["PROVED"],
        tested=grades["TESTED"],
        refuted_as_expected=grades["refuted"],
        stale=tuple(stale),
        missing=tuple(missing),
    )


def standings(invariants: Iterable[Invariant], path: Path = LOCK) -> tuple[ProofStatus, ...]:
    """The standing of each invariant by the lock at `path`."""
    lock = read_lock(path)
    return tuple(standing(invariant, lock) for invariant in invariants)


def cite(status: ProofStatus) -> str:
    """One line for a message: `proved: z3, exact (12 shown, 2 tested)`, or what is stale."""
    if status.stale:
        return f"UNPROVED: {', '.join(status.stale)} changed since the last proof"
    if status.missing:
        return f"UNPROVED: {len(status.missing)} obligations were never shown"
    counts = f"{status.shown} obligations proved, {status.tested} tested"
    return f"{status.grade.lower()}: {', '.join(status.engines)} ({counts})"


def demand_current(statuses: Iterable[ProofStatus]) -> None:
    """EvidenceError when an invariant is not proved of the code as it is: strict does not start on it."""
    unproved = [status for status in statuses if not status.current]
    if unproved:
        lines = "; ".join(f"{status.invariant} is {cite(status)}" for status in unproved)
        raise EvidenceError(
            lines,
            required="under strict, every guard proved of the code that runs",
            next_step="make verify   (or --policy warn, which says UNPROVED in the report)",
        )
