"""`trainer explain INV-8`: statement, bounds as formula and decimal, evidence obligation by obligation, limits."""

from __future__ import annotations

import textwrap

from karat.core.invariant import Invariant
from karat.core.obligation import Theorem
from karat.core.provenance import qualified_name
from karat.core.report import ProofLock
from karat.invariants import template
from karat.invariants.coq_sources import pinned
from karat.invariants.standing import cite, fingerprints, standing

WIDTH = 110
TEMPLATE = (
    f"{template.INVARIANT.id} is the file that new invariants are copied from (docs/adding-an-invariant.md). No run is guarded "
    "by it, and no lock keeps its proofs: make verify decides them anew, or trainer verify --only "
    f"{template.INVARIANT.id}."
)


def explain(invariant: Invariant, lock: ProofLock | None) -> str:
    """The page as plain text."""
    if invariant is template.INVARIANT:
        known, mutants = "kept in no lock", f"Mutants\n{_wrap('Judged by make verify, kept in no lock.', '  ')}"
    else:
        known, mutants = cite(standing(invariant, lock)), _mutants(invariant, lock)
    parts = [
        f"{invariant.id} {invariant.slug}",
        *([_wrap(TEMPLATE, "  ")] if invariant is template.INVARIANT else []),
        _wrap(invariant.statement, "  "),
        _wrap(f"Why: {invariant.why}", "  "),
        "Required\n  " + invariant.required(invariant.parameters),
        "Bounds\n" + "\n".join(f"  {b.name:<15} {b.formula}   = {b.decimal}" for b in invariant.bounds(invariant.parameters)),
        "Observed\n" + "\n".join(f"  {q.symbol:<15} {q.meaning}{f' [{q.unit}]' if q.unit else ''}" for q in invariant.quantities)
        + f"\n  when            {', '.join(p.value for p in invariant.phases)}",
        f"Evidence: {known}\n" + "\n".join(_evidence(invariant, lock)),
        mutants,
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
            unknown = "not kept" if invariant is template.INVARIANT else "NOT SHOWN"
            grade = "slow tier" if obligation.slow else unknown if obligation.demanded else "not shown"
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
        if isinstance(obligation, Theorem):
            lines += _in_coq(obligation, " " * len(label))
    return lines


def _in_coq(theorem: Theorem, indent: str) -> list[str]:
    """The theorem as Coq prints it, its axioms are in the detail; and what its definitions stand for."""
    try:
        stated = pinned(theorem.file).get(f"{theorem.file}.{theorem.theorem}", {}).get("text", "pinned nowhere")
    except ValueError as error:
        stated = f"cannot be read: {error}"
    lines = [_wrap(f"{theorem.theorem} : {stated}", indent)]
    for one in theorem.counterparts:
        lines.append(_wrap(f"{one.definition} is {qualified_name(one.function)} at {one.points} points", indent))
    return lines


def _mutants(invariant: Invariant, lock: ProofLock | None) -> str:
    score = lock.mutants.get(invariant.id) if lock else None
    told = f"{score}." if score else "None was judged: make verify."
    text = f"{told} Mutants are single changes of the running functions that the proofs above are about; each one that is not "
    return "Mutants\n" + _wrap(text + "shown equivalent must be refuted by a proof.", "  ")


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
