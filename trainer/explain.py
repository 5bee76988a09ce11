"""`trainer explain INV-8`: statement, bounds as formula and decimal, evidence obligation by obligation, limits."""

from __future__ import annotations

import textwrap

from karat.core.invariant import Invariant
from karat.core.report import ProofLock
from karat.invariants.standing import cite, fingerprints, standing

WIDTH = 110


def explain(invariant: Invariant, lock: ProofLock | None) -> str:
    """The page as plain text."""
    status = standing(invariant, lock)
    parts = [
        f"{invariant.id} {invariant.slug}",
        _wrap(invariant.statement, "  "),
        _wrap(f"Why: {invariant.why}", "  "),
        "Required\n  " + invariant.required(invariant.parameters),
        "Bounds\n" + "\n".join(f"  {b.name:<15} {b.formula}   = {b.decimal}" for b in invariant.bounds(invariant.parameters)),
        "Observed\n" + "\n".join(f"  {q.symbol:<15} {q.meaning}{f' [{q.unit}]' if q.unit else ''}" for q in invariant.quantities)
        + f"\n  when            {', '.join(p.value for p in invariant.phases)}",
        f"Evidence: {cite(status)}\n" + "\n".join(_evidence(invariant, lock)),
        _mutants(invariant, lock),
        "Limits\n" + "\n".join(_wrap(f"- {limit}", "  ") for limit in invariant.limits),
        "Sources\n" + "\n".join(_wrap(f"- {source}", "  ") for source in invariant.sources),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _evidence(invariant: Invariant, lock: ProofLock | None) -> list[str]:
    shown = lock.proofs.get(invariant.id, {}) if lock else {}
    lines = []
    for obligation in invariant.obligations:
        proof = shown.get(obligation.id)
        if proof is None:
            grade = "slow tier" if obligation.slow else "NOT SHOWN"
        elif proof.about != fingerprints(obligation):
            grade = "STALE"
        else:
            grade = "REFUTED" if obligation.must_fail else proof.grade
        label = f"  {grade:<9} {obligation.engine:<10} "
        claim = f'"{obligation.claim}" (false, kept as a refutation)' if obligation.must_fail else obligation.claim
        detail = f" [{proof.detail}]" if proof and proof.detail else ""
        lines.append(textwrap.fill(claim + detail, WIDTH, initial_indent=label, subsequent_indent=" " * len(label)))
        if proof:
            lines += [f"{' ' * len(label)}hypotheses {part}" for part in filter(None, proof.hypotheses.split(". "))]
            lines += [f"{' ' * len(label)}assumes: {fact}" for fact in proof.assumes]
    return lines


def _mutants(invariant: Invariant, lock: ProofLock | None) -> str:
    score = lock.mutants.get(invariant.id) if lock else None
    told = f"{score}." if score else "None was judged: make verify."
    text = f"{told} Mutants are single changes of the running functions that the proofs above are about; each one that is not "
    return "Mutants\n" + _wrap(text + "shown equivalent must be refuted by a proof.", "  ")


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
