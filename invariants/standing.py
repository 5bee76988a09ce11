"""What is proved of an invariant as it is now: the proof lock compared with the fingerprints of the running functions.

`make verify` writes invariants/proofs.lock, and for the invariant of a plug-in the proofs.lock beside it; a run reads
them. An obligation whose functions changed since, or which the lock does not have, is UNPROVED, and strict does not
start on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from karat.core import verdict
from karat.core.errors import EvidenceError
from karat.core.invariant import Invariant
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.provenance import digest, fingerprint, qualified_name
from karat.core.report import GREEN, ProofLock, ProofStatus, read_lock
from karat.invariants.catalogue import found
from karat.invariants.coq_sources import source_digest

LOCK = Path(__file__).with_name("proofs.lock")
UNPROVED = "UNPROVED"


def fingerprints(obligation: Obligation) -> dict[str, str]:
    """Qualified name -> fingerprint of everything that an obligation rests on.

    These are the running functions it is about, those that state the claim, and the statement itself: a claim that was
    weakened after the proof is as stale as a formula that was changed.
    """
    found = {qualified_name(function): fingerprint(function) for function in obligation.about}
    statement = {}
    for part in fields(obligation):
        value = getattr(obligation, part.name)
        if part.name in ("show", "given", "check", "check_block", "holds", "run", "strategy"):
            found[f"{qualified_name(value)} ({part.name})"] = fingerprint(value)
        elif part.name == "counterparts":
            found |= {one.definition: _counterpart(one) for one in value}
        elif part.name not in ("about", "sample", "rivals"):
            statement[part.name] = repr(value)
    found["statement"] = digest(statement)[:32]
    if isinstance(obligation, Theorem):
        found[f"proofs/coq/{obligation.file}.v"] = source_digest(obligation.file)
    return found


def _counterpart(one: Counterpart) -> str:
    """What ties a definition in Coq to a running function: the function, how it is called, the term, how many points."""
    return digest([fingerprint(one.function), fingerprint(one.run), one.term, one.points])[:32]


def guard_fingerprints(invariant: Invariant) -> dict[str, str]:
    """The same for what the guard runs: the margin, how it is judged, its declared parameters and their class."""
    judging = (type(invariant).judge, verdict.judge)
    running: tuple[Callable[..., Any], ...] = (invariant.margin, *judging, type(invariant.parameters))
    found = {qualified_name(function): fingerprint(function) for function in running}
    return found | {"declared parameters": digest(repr(invariant.parameters))[:32]}


def standing(invariant: Invariant, lock: ProofLock | None) -> ProofStatus:
    """The standing of one invariant: PROVED or TESTED when every obligation was shown of the code as it is, else UNPROVED."""
    shown = lock.proofs.get(invariant.id, {}) if lock else {}
    stale: dict[str, None] = {}
    missing, engines, grades = [], Counter[str](), Counter[str]()
    rests_on = {obligation.id: fingerprints(obligation) for obligation in invariant.obligations}
    for obligation in invariant.obligations:
        proof = shown.get(obligation.id)
        if proof is None:
            if obligation.demanded:  # what `make verify` cannot decide everywhere is not counted as shown, not demanded
                missing.append(obligation.id)
            continue
        now = rests_on[obligation.id]
        changed = {name for name in {*now, *proof.about} if proof.about.get(name) != now.get(name)}
        stale.update(
            dict.fromkeys(sorted(f"{obligation.id} {name}" if name == "statement" else name for name in changed))
        )
        wanted = ("REFUTED",) if obligation.must_fail else GREEN
        if proof.grade not in wanted:
            stale[f"{obligation.id} is {proof.grade} in the lock"] = None
        engines[proof.engine] += 1
        grades["refuted" if obligation.must_fail else proof.grade] += 1
    guard = guard_fingerprints(invariant)
    locked = lock.guards.get(invariant.id, {}) if lock else {}
    if shown:
        stale.update(dict.fromkeys(name for name in guard if locked.get(name) != guard[name]))
    grade = UNPROVED if stale or missing or not invariant.obligations else ("PROVED" if grades["PROVED"] else "TESTED")
    return ProofStatus(
        invariant=invariant.id,
        grade=grade,
        engines=tuple(engines),
        shown=grades["PROVED"],
        tested=grades["TESTED"],
        refuted_as_expected=grades["refuted"],
        fingerprint=digest([rests_on, guard])[:16],
        stale=tuple(stale),
        missing=tuple(missing),
    )


def lock_path(invariant: Invariant) -> Path:
    """Where the proofs of an invariant are kept: the plug-in's own lock when it is one, else karat's."""
    return next((plugin.lock for plugin in found().plugins if plugin.invariant.id == invariant.id), LOCK)


def standings(invariants: Iterable[Invariant], path: Path | None = None) -> tuple[ProofStatus, ...]:
    """The standing of each invariant by the lock at `path`, or by the lock that it belongs to."""
    paths = [(invariant, path or lock_path(invariant)) for invariant in invariants]
    locks = {where: read_lock(where) for _, where in paths}
    return tuple(standing(invariant, locks[where]) for invariant, where in paths)


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
            next_step="make verify, or python -m karat.proofs.verify   (or --policy warn, which reports UNPROVED)",
        )
