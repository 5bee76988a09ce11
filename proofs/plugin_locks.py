"""The proof locks of plug-ins: each beside the module that defines the invariant, so that its package ships it.

A lock is written when everything that was verified of its invariants is as expected. It keeps what was not verified
this time and still holds: other invariants of the same lock, and obligations that this run left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from karat.core.errors import EvidenceError, StorageError
from karat.core.evidence import Evidence, MutantRecord, Score, exit_code
from karat.core.invariant import Invariant
from karat.core.report import Proof, ProofLock, read_lock, write_text
from karat.invariants.plugins import Plugin
from karat.invariants.standing import fingerprints, guard_fingerprints


def write_plugin_locks(
    plugins: Sequence[Plugin],
    evidence: Sequence[Evidence],
    mutants: Sequence[MutantRecord],
    solver: Mapping[str, str],
    out: Path,
) -> list[str]:
    """Writes the lock of every plug-in that was verified; returns a line for each on what was written where."""
    said = []
    for path in dict.fromkeys(plugin.lock for plugin in plugins):
        here = [plugin for plugin in plugins if plugin.lock == path]
        shown = [e for e in evidence if e.invariant in {plugin.invariant.id for plugin in here}]
        if not shown:
            continue
        verified = ", ".join(dict.fromkeys(e.invariant for e in shown))
        tried = [m for m in mutants if set(m.invariants) & {plugin.invariant.id for plugin in here}]
        if exit_code(shown, tried) != 0:
            said.append(f"{verified}: {path} left as it was")
            continue
        lock = plugin_lock([plugin.invariant for plugin in here], shown, solver, _existing(path))
        scores = {p.invariant.id: Score.of(m for m in tried if p.invariant.id in m.invariants) for p in here}
        lock = lock.model_copy(update={"mutants": {**lock.mutants, **scores} if tried else lock.mutants})
        said.append(f"{verified}: {_write(path, lock, out, here[0].package)}")
    return said


def plugin_lock(
    invariants: Sequence[Invariant], evidence: Sequence[Evidence], solver: Mapping[str, str], old: ProofLock | None
) -> ProofLock:
    """The lock of invariants of one package: what was shown now, and what an old lock of the same solvers shows still."""
    kept = old.proofs if old is not None and old.solver == dict(solver) else {}
    found = {e.obligation: e for e in evidence}
    proofs: dict[str, dict[str, Proof]] = {}
    for invariant in invariants:
        held: dict[str, Proof] = {}
        for obligation in invariant.obligations:
            e, before = found.get(obligation.id), kept.get(invariant.id, {}).get(obligation.id)
            if e is not None:
                held[obligation.id] = Proof(
                    claim=e.claim,
                    engine=e.engine,
                    grade=e.grade.name,
                    about=e.about,
                    assumes=e.assumes,
                    detail=e.detail,
                    hypotheses=e.checks.get("hypotheses needed", ""),
                    slow=e.slow,
                )
            elif before is not None and before.about == fingerprints(obligation):
                held[obligation.id] = before
        if held:
            proofs[invariant.id] = held
    guards = {invariant.id: guard_fingerprints(invariant) for invariant in invariants if invariant.id in proofs}
    return ProofLock(solver=dict(solver), proofs=proofs, guards=guards)


def _existing(path: Path) -> ProofLock | None:
    """The lock as it is; one that cannot be read is replaced."""
    try:
        return read_lock(path)
    except EvidenceError:
        return None


def _write(path: Path, lock: ProofLock, out: Path, package: str) -> str:
    text = lock.model_dump_json(indent=1) + "\n"
    try:
        write_text(path, text)
    except StorageError as error:
        elsewhere = out / f"{package}.{path.name}"
        write_text(elsewhere, text)
        return f"{error.seen}\n  written to {elsewhere}\n  next      copy it to {path}"
    return f"{path} written"
