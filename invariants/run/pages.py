"""The pages of the RUN family, docs/rules/, written from its records: one for each rule, and their index.

    python -m karat.invariants.run.pages --write docs/rules

What a page calls proved is read off the proof lock; nothing on it is typed in twice.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from karat.core.report import ProofLock, read_lock, write_text
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.limit01_comparisons import INVARIANT as LIMITS
from karat.invariants.run.rule import Form, Rule, Witness
from karat.invariants.standing import LOCK, standing

CALL = re.compile(r"(?<![`\w.])((?:Spec|Schedule|Suppression|watch|guards\.\w+)\((?:[^()]|\([^()]*\))*\))")
LIMIT = {
    Form.AT_MOST: "must be at most its limit",
    Form.AT_LEAST: "must be at least its limit",
    Form.WITHIN: "must be within its limits",
    Form.AGREES: "must be what is declared or expected, to a tolerance",
}
PROVED_BY = {Form.AT_MOST: "at-most", Form.AT_LEAST: "at-least", Form.WITHIN: "within", Form.AGREES: "agrees"}


def page(rule: Rule, lock: ProofLock | None) -> str:
    """One rule's page: statement, evidence, what it cannot see, the bug, where such a bug was reported, how to declare."""
    parts = [
        f"# {rule.id} {rule.slug}",
        sentence(rule.statement),
        f"Why it matters: {_marked(rule.why)}.",
        _table(rule),
        f"## Evidence\n\n{_evidence(rule, lock)}",
        "## Limits\n\nNot seen, or judged with less certainty:\n\n"
        + "\n".join(f"- {sentence(limit)}" for limit in rule.limits),
        f"## The bug\n\n{_block(rule.example)}\n\nWithout it:\n\n{_block(rule.mended)}",
        f"Such a bug, reported or described: <{rule.source}>",
        _declared(rule),
    ]
    return "\n\n".join(parts) + "\n"


def index(rules: Iterable[Rule]) -> str:
    """All rules in one table."""
    rows = [
        f"| [{r.id}]({r.id}.md) | {r.slug} | {sentence(r.statement)} | {r.severity} | {', '.join(r.seen_by)} | {r.when} |"
        for r in rules
    ]
    head = (
        "# The RUN family\n\nWhat must hold of any training run. FAIL: the spec or mathematics decides. WARN: a heuristic. "
        "A rule of severity FAIL\nsays WARN where it only guesses. Which loops with a bug each rule "
        "catches: `make bench-guards`. This folder is written by\n`make rules` from the records in `invariants/run/`.\n\n"
        "| id | slug | states | severity | seen by | when |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop; a first word that is code, such as cross_entropy, stays as it is."""
    first = text.split()[0].rstrip(",;:")
    capital = text[0].upper() + text[1:] if first.isalpha() and first.islower() else text
    return f"{_marked(capital)}."


def _marked(text: str) -> str:
    """Calls in the text marked as code."""
    return CALL.sub(r"`\1`", text)


def _table(rule: Rule) -> str:
    told = not rule.unit or rule.unit in rule.quantity.replace(",", "").split()
    unit = "" if told else f", in {'the unit ' if rule.unit.startswith('of ') else ''}{rule.unit}"
    rows = {
        "severity": str(rule.severity),
        "judges": f"{rule.quantity}{unit}; {LIMIT[rule.form]}",
        "seen by": ", ".join(rule.seen_by),
        "when": _marked(rule.when),
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {text} |" for name, text in rows.items())


def _evidence(rule: Rule, lock: ProofLock | None) -> str:
    name = f"{LIMITS.id}.{PROVED_BY[rule.form]}"
    proof = lock.proofs.get(LIMITS.id, {}).get(name) if lock else None
    current = standing(LIMITS, lock).current
    grade = "not shown" if proof is None else proof.grade if current else f"{proof.grade} of older code"
    claim = next(o.claim for o in LIMITS.obligations if o.id == name)
    lines = [f"- The comparison, {grade} for every double ({name}): {claim}."]
    lines += [f"- Holds: {_witness(w, rule, 'is')}." for w in rule.holds]
    lines += [f"- Violated: {_witness(w, rule, 'is not')}." for w in rule.violates]
    lines.append(
        "- What reads the number off a run is tested, not proved: loops with the bug and without (`make bench-guards`)."
    )
    return "\n".join(lines)


def _witness(witness: Witness, rule: Rule, verb: str) -> str:
    low, *more = [f"{b:g}" for b in witness.bounds]
    limit = {Form.WITHIN: f"{low} to {more[0]}", Form.AGREES: f"{low} ± {more[0]}"}[rule.form] if more else low
    relation = "within" if more else str(rule.form)
    return f"{witness.value:g} {verb} {relation} {limit}: {witness.why}"


def _declared(rule: Rule) -> str:
    """What to write in the Spec, and how the rule is silenced by those that take one."""
    parts = ["## Declare, or suppress"]
    if not rule.declare.startswith("Spec(suppress="):
        parts.append(_block(rule.declare) if _is_code(rule.declare) else sentence(rule.declare))
    if {"watch", "preflight"} & set(rule.seen_by):
        known = rule.declare if len(parts) == 1 else f'Spec(suppress=[{{"rule": "{rule.slug}", "reason": "…"}}])'
        parts.append(f"To suppress it, with the reason that the report keeps:\n\n{_block(known)}")
    if "audit" in rule.seen_by:
        text = f'suppress = [{{ rule = "{rule.slug}", reason = "…" }}]'
        parts.append(f"In the file of `trainer audit --spec`:\n\n```toml\n{text}\n```")
    return "\n\n".join(parts)


def _is_code(text: str) -> bool:
    """Whether the text is a command, or Python; one word or two are a sentence."""
    if text.startswith("trainer "):
        return True
    try:
        return "(" in text and bool(ast.parse(text))
    except SyntaxError:
        return False


def _block(code: str) -> str:
    """The code as a block; commands of a shell are none of Python."""
    try:
        language = "python" if ast.parse(code) else ""
    except SyntaxError:
        language = "" if not code.startswith("trainer ") else "sh"
    return f"```{language}\n{code}\n```"


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
