"""The pages of the RUN family, docs/rules/, written from its records: one for each rule, and their index.

    python -m karat.invariants.run.pages --write docs/rules

What a page calls proved is read off the proof lock; nothing on it is typed in twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from karat.core.report import ProofLock, read_lock, write_text
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.limit01_comparisons import INVARIANT as LIMITS
from karat.invariants.run.rule import Form, Rule, Witness
from karat.invariants.standing import LOCK, standing

PROVED_BY = {Form.AT_MOST: "at-most", Form.AT_LEAST: "at-least", Form.WITHIN: "within", Form.AGREES: "agrees"}


def page(rule: Rule, lock: ProofLock | None) -> str:
    """One rule's page: statement, evidence, what it cannot see, the bug, where such a bug was reported, how to declare."""
    parts = [
        f"# {rule.id} {rule.slug}",
        f"{rule.statement[0].upper()}{rule.statement[1:]}.",
        f"Why: {rule.why}.",
        _table(rule),
        f"## Evidence\n\n{_evidence(rule, lock)}",
        "## What it cannot see\n\n" + "\n".join(f"- {limit}" for limit in rule.limits),
        f"## The bug\n\n```python\n{rule.example}\n```\n\nWithout it:\n\n```python\n{rule.mended}\n```",
        f"Reported: <{rule.source}>",
        f"## Declare, or suppress\n\n{_code(rule.declare)}\n\nTo suppress it, with the reason that the report keeps:\n\n"
        f'```python\nSpec(suppress=[{{"rule": "{rule.slug}", "reason": "…"}}])\n```',
    ]
    return "\n\n".join(parts) + "\n"


def index(rules: Iterable[Rule]) -> str:
    """All rules in one table."""
    rows = [
        f"| [{r.id}]({r.id}.md) | {r.slug} | {r.statement} | {r.severity} | {', '.join(r.seen_by)} | {r.when} |"
        for r in rules
    ]
    head = (
        "# The RUN family\n\nWhat must hold of any training run. FAIL: the spec or mathematics decides. WARN: a heuristic. "
        "A rule of severity FAIL\nsays WARN where it only guesses. This folder is written by `make rules` from the records in "
        "`invariants/run/`.\n\n| id | slug | states | severity | seen by | when |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


def _table(rule: Rule) -> str:
    unit = f", in {rule.unit}" if rule.unit else ""
    rows = {
        "severity": str(rule.severity),
        "judges": f"{rule.quantity}{unit}; {rule.form} its limit",
        "seen by": ", ".join(rule.seen_by),
        "when": rule.when,
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {text} |" for name, text in rows.items())


def _evidence(rule: Rule, lock: ProofLock | None) -> str:
    name = f"{LIMITS.id}.{PROVED_BY[rule.form]}"
    proof = lock.proofs.get(LIMITS.id, {}).get(name) if lock else None
    current = standing(LIMITS, lock).current
    grade = "not shown" if proof is None else proof.grade if current else f"{proof.grade} of older code"
    claim = next(o.claim for o in LIMITS.obligations if o.id == name)
    lines = [f"- The comparison, {grade} for every double ({name}): {claim}."]
    lines += [f"- Holds: {_witness(w, rule)}." for w in rule.holds]
    lines += [f"- Violated: {_witness(w, rule)}." for w in rule.violates]
    lines.append(
        "- What reads the number off a run is tested, not proved: loops with the bug and without (`make bench-guards`)."
    )
    return "\n".join(lines)


def _witness(witness: Witness, rule: Rule) -> str:
    bounds = ", ".join(f"{b:g}" for b in witness.bounds)
    return f"{witness.value:g} {rule.form} {bounds}, {witness.why}"


def _code(text: str) -> str:
    """Code as code, a sentence as a sentence."""
    return (
        f"```python\n{text}\n```"
        if "(" in text and " or " not in text and "\n" not in text and ". " not in text
        else text
    )


def written(lock: ProofLock | None) -> dict[str, str]:
    """File name -> text, of the whole folder."""
    return {"README.md": index(RULES)} | {f"{rule.id}.md": page(rule, lock) for rule in RULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m karat.invariants.run.pages", description=main.__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER", help="where the pages go, docs/rules")
    folder: Path = parser.parse_args(arguments).write
    for name, text in written(read_lock(LOCK)).items():
        write_text(folder / name, text)
    print(f"{len(RULES)} rules in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
