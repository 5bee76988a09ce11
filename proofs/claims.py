"""`make claims`: the claims ledger. Every claim of the source documents, with the verdict computed now.

Exit code 0: every claim was decided, or is declared open. 2: a checker raised or is missing, or the command was mistyped.
Options: --only C-003.* (repeatable), --json, --write PATH (the page as Markdown, of all claims).
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from karat.core.errors import ConfigError, KaratError
from karat.core.render_markdown import table
from karat.core.report import write_text
from karat.proofs.ledger import cpu_architecture, igla_race, igla_sources, structure_over_scale, ternary_run
from karat.proofs.ledger.record import Checker, Claim, Document, Ruling, Verdict, rule

DOCUMENTS: tuple[Document, ...] = (
    ternary_run.DOCUMENT,
    structure_over_scale.DOCUMENT,
    cpu_architecture.DOCUMENT,
    igla_race.DOCUMENT,
    igla_sources.DOCUMENT,
)
CLAIMS: tuple[Claim, ...] = tuple(entry.claim for document in DOCUMENTS for entry in document.entries)
CHECKERS: dict[str, Checker] = {
    entry.claim.id: entry.check for document in DOCUMENTS for entry in document.entries if entry.check is not None
}
STYLES = {Verdict.TRUE: "green", Verdict.FALSE: "bold red", Verdict.VACUOUS: "yellow", Verdict.UNDECIDED: "dim"}
PREAMBLE = """What the documents say that this project grew from, and what is computed of it. `make claims` prints this table
and writes this page; no verdict is typed in, and every checker comes to another verdict on a statement that differs.

- **TRUE**, **FALSE**: the stated number or statement agrees, or does not, with the computed one.
- **VACUOUS**: it holds and could not fail: by definition, or because its bound can never bind.
- **UNDECIDED**: nothing here decides it, most often because it rests on a run that cannot be repeated here; the reason is given.

A printed decimal stands for the numbers that round to it; `~` allows twice that, and then the trailing zeros of a whole
number are not digits. TRUE says that a number follows from the others, not that what it describes is so."""


def tells_apart(claim: Claim, checkers: dict[str, Checker]) -> bool:
    """Whether the claim's checker comes to another verdict on the wrong statement: if not, it decides nothing."""
    stated, wrong = rule(claim, checkers), rule(replace(claim, stated=claim.wrong), checkers)
    return not stated.amiss and not wrong.amiss and stated.verdict is not wrong.verdict


def rulings(claims: Iterable[Claim] = CLAIMS, checkers: dict[str, Checker] = CHECKERS) -> list[Ruling]:
    """The verdict on each claim, computed now."""
    return [rule(claim, checkers) for claim in claims]


def counts(ruled: Iterable[Ruling]) -> str:
    """`3 claims: 1 TRUE, 2 FALSE, 0 VACUOUS, 0 UNDECIDED`."""
    number = Counter(ruling.verdict for ruling in ruled)
    return f"{number.total()} claims: " + ", ".join(f"{number[verdict]} {verdict.value}" for verdict in Verdict)


def result(ruling: Ruling) -> str:
    """What was computed, then the remark."""
    return "; ".join(part for part in (ruling.computed, ruling.note) if part)


def page(ruled: Sequence[Ruling]) -> str:
    """The ledger as Markdown: a table per document. The same bytes for the same verdicts."""
    parts = ["# Claims ledger", PREAMBLE, f"{counts(ruled)}.", _summary(ruled)]
    for document in DOCUMENTS:
        own = _of(document, ruled)
        rows = [(r.claim.id, r.claim.text, r.claim.where, r.claim.how, r.verdict.value, result(r)) for r in own]
        header = ("id", "claim", "where", "decided by", "verdict", "computed")
        parts += [f"## {document.prefix}: {document.title}", document.about, table(header, rows)]
    return "\n\n".join(parts) + "\n"


def _of(document: Document, ruled: Iterable[Ruling]) -> list[Ruling]:
    return sorted((r for r in ruled if r.claim.id.split(".")[0] == document.prefix), key=lambda r: r.claim.id)


def _summary(ruled: Sequence[Ruling]) -> str:
    rows = []
    for document in DOCUMENTS:
        number = Counter(ruling.verdict for ruling in _of(document, ruled))
        rows.append((document.title, number.total(), *(number[verdict] for verdict in Verdict)))
    return table(("document", "claims", *(verdict.value for verdict in Verdict)), rows)


def show(ruled: Sequence[Ruling], console: Console) -> None:
    """A table on a terminal; a line per claim in a file or a pipe."""
    if not console.is_terminal:
        for r in ruled:
            print(f"{r.claim.id:<9} {r.verdict.value:<9} {r.claim.text}  [{r.claim.how}: {result(r)}]")
        print(counts(ruled))
        return
    grid = Table(box=None, pad_edge=False)
    for name in ("id", "verdict"):
        grid.add_column(name, no_wrap=True)
    for name in ("claim", "computed"):
        grid.add_column(name, ratio=1)
    for r in ruled:
        grid.add_row(r.claim.id, f"[{STYLES[r.verdict]}]{r.verdict.value}[/]", escape(r.claim.text), escape(result(r)))
    console.print(grid)
    console.print(f"\n{counts(ruled)}", highlight=False)


def as_json(ruled: Sequence[Ruling]) -> str:
    """The rulings as JSON."""
    rows = [{"id": r.claim.id, "claim": r.claim.text, "where": r.claim.where, "decided_by": r.claim.how,
             "verdict": r.verdict.value, "computed": r.computed, "note": r.note} for r in ruled]  # fmt: skip
    return json.dumps(rows, indent=1, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The table on standard output; what went amiss on standard error."""
    parser = argparse.ArgumentParser(prog="python -m karat.proofs.claims", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", metavar="C-003.*", help="these claims only (repeatable)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write the page as Markdown")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except KaratError as error:
        print(f"claims: {error}", file=sys.stderr)
        return error.exit_code


def _no_claim(unknown: Sequence[str]) -> ConfigError:
    """The error for patterns that no claim is called by, with the nearest ids."""
    patterns = [f"{document.prefix}.*" for document in DOCUMENTS]
    names = [claim.id for claim in CLAIMS] + patterns
    near = [name for text in unknown for name in difflib.get_close_matches(text.upper(), names, n=3)]
    guess = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    return ConfigError(
        f"no claim is called {' or '.join(unknown)}",
        required=f"an id such as {CLAIMS[0].id}, or a pattern: {', '.join(patterns)}",
        next_step=f"{guess}without --only every claim is shown with its id; or --only '{patterns[0]}'",
    )


def _run(options: argparse.Namespace) -> int:
    patterns = options.only or ["*"]
    unknown = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(claim.id, pattern) for claim in CLAIMS)]
    if unknown:
        raise _no_claim(unknown)
    chosen = [c for c in CLAIMS if any(fnmatch.fnmatchcase(c.id, pattern) for pattern in patterns)]
    if options.write and options.only:
        raise ConfigError("--write with --only", required="the page of all claims", next_step="leave --only out")
    ruled = rulings(chosen)
    if options.json:
        print(as_json(ruled))
    else:
        show(ruled, Console())
    if options.write:
        write_text(options.write, page(ruled))
    amiss = [ruling for ruling in ruled if ruling.amiss]
    for ruling in amiss:
        print(f"claims: {ruling.claim.id} is not decided: {ruling.note}", file=sys.stderr)
    return 2 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
