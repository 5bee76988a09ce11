"""`make verify`: proves the catalogue, prints a row per obligation, writes report.json, report.md and the proof lock.

Exit code 0: everything is as expected. 1: something is refuted or vacuous. 2: something could not be judged. The lock
is written only when everything was verified and is as expected: it says what is proved, not what was tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from karat.core.errors import KaratError
from karat.core.evidence import Evidence, Grade, exit_code
from karat.core.obligation import Obligation
from karat.core.provenance import code_revision, environment
from karat.core.render_markdown import verification_markdown
from karat.core.report import Proof, ProofLock, VerificationReport, write_report, write_text
from karat.invariants.catalogue import BUILT_IN, find, found
from karat.invariants.standing import LOCK, guard_fingerprints
from karat.proofs.plugin_locks import write_plugin_locks
from karat.proofs.worker import decide_all, invariants

TOOLS = ("z3-solver", "sympy", "hypothesis", "numpy")
STYLES = {Grade.PROVED: "green", Grade.TESTED: "cyan", Grade.REFUTED: "bold red", Grade.VACUOUS: "bold red"}


def verify(obligations: list[Obligation], jobs: int, console: Console) -> list[Evidence]:
    """Decides the obligations; returns the evidence in the order of the catalogue."""
    found: dict[str, Evidence] = {}
    columns = (
        TextColumn("verify"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(obligations))
        for obligation, evidence in decide_all(obligations, jobs):
            found[obligation.id] = evidence
            progress.update(task, advance=1, description=obligation.id)
    return [found[obligation.id] for obligation in obligations]


def show(evidence: Sequence[Evidence], console: Console) -> None:
    """Prints the table, then every result that is not as expected, with its counterexample."""
    table = Table(box=None, pad_edge=False)
    for name, options in (("invariant", {"no_wrap": True}), ("claim", {"ratio": 1}), ("engine", {"no_wrap": True}),
                          ("status", {}), ("time", {"justify": "right", "no_wrap": True})):  # fmt: skip
        table.add_column(name, **options)
    for e in evidence:
        style = ("dim" if e.must_fail else STYLES.get(e.grade, "yellow")) if e.expected else "bold red"
        table.add_row(e.invariant, escape(e.claim), e.engine, f"[{style}]{e.label}[/]", f"{e.seconds:.2f} s")
    console.print(table)
    for e in evidence:
        if e.expected:
            continue
        console.print(f"\n[bold red]{e.obligation}[/] {e.grade.name}: {escape(e.detail)}", highlight=False)
        console.print(f"  claim           {e.claim}", highlight=False, markup=False)
        if e.counterexample is not None:
            values = ", ".join(f"{name} = {value}" for name, value in e.counterexample.values.items())
            real = "fails there" if e.counterexample.reproduced else "does NOT fail there"
            console.print(
                f"  counterexample  {values or '(see note)'}; the running function {real}",
                highlight=False,
                markup=False,
            )
            console.print(f"  note            {e.counterexample.note}", highlight=False, markup=False)
        console.print(f"  about           {', '.join(e.about)}", highlight=False)


def lock_of(evidence: Sequence[Evidence], solver: dict[str, str]) -> ProofLock:
    """What is to be locked: every obligation with its grade, its functions and what it assumes."""
    proofs: dict[str, dict[str, Proof]] = {}
    for e in evidence:
        proofs.setdefault(e.invariant, {})[e.obligation] = Proof(
            claim=e.claim, engine=e.engine, grade=e.grade.name, about=e.about, assumes=e.assumes, detail=e.detail
        )
    guards = {i.id: guard_fingerprints(i) for i in BUILT_IN if i.id in proofs}
    return ProofLock(solver=solver, proofs=proofs, guards=guards)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Results on standard output, progress on standard error."""
    parser = argparse.ArgumentParser(prog="python -m karat.proofs.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--only",
        action="append",
        metavar="INV-8",
        help="verify this invariant only (repeatable); writes no lock but a plug-in's own",
    )
    parser.add_argument("--out", type=Path, default=Path("build/verify"), help="folder for report.json and report.md")
    parser.add_argument("--lock", type=Path, default=LOCK, help="the proof lock to write")
    parser.add_argument("--no-lock", action="store_true", help="do not write the lock")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except KaratError as error:
        print(f"verify: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    chosen = [find(name) for name in options.only] if options.only else list(invariants())
    obligations = [o for invariant in chosen for o in invariant.obligations]
    evidence = verify(obligations, max(1, options.jobs), Console(stderr=True))
    broken = () if options.only else found().broken
    code = exit_code(evidence) or (2 if broken else 0)
    tools = environment(TOOLS)
    report = VerificationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=code_revision(Path(__file__).parents[1]),
        environment=tools,
        evidence=tuple(evidence),
        exit_code=code,
        seconds=round(time.perf_counter() - start, 1),
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # in a file or a log: a row per obligation
    show(evidence, console)
    written = write_report(options.out / "report.json", report)
    write_text(options.out / "report.md", verification_markdown(report))
    locked = _lock(options, evidence, tools)
    console.print(f"\n{_summary(evidence)} in {report.seconds} s; {locked}", highlight=False, soft_wrap=True)
    if not options.no_lock:
        for line in write_plugin_locks(found().plugins, evidence, {name: tools[name] for name in TOOLS}, options.out):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for error in broken:
        print(f"verify: left out: {error}", file=sys.stderr)
    console.print(f"{options.out / 'report.md'}   digest {written[:16]}…", highlight=False, soft_wrap=True)
    return code


def _lock(options: argparse.Namespace, evidence: Sequence[Evidence], tools: dict[str, str]) -> str:
    plugged_in = {plugin.invariant.id for plugin in found().plugins}
    built_in = {i.id for i in BUILT_IN}
    if options.only or options.no_lock:
        return "karat's own lock not written"
    if exit_code([e for e in evidence if e.invariant not in plugged_in]) != 0:  # a plug-in's failure is not karat's
        return f"{options.lock.name} left as it was"
    ours = [e for e in evidence if e.invariant in built_in]
    lock = lock_of(ours, {name: tools[name] for name in TOOLS})
    write_text(options.lock, lock.model_dump_json(indent=1) + "\n")
    return f"{options.lock.name} written"


def _summary(evidence: Sequence[Evidence]) -> str:
    count = {grade: sum(e.grade is grade and not e.must_fail for e in evidence) for grade in Grade}
    refuted = sum(e.must_fail and e.expected for e in evidence)
    missed = sum(not e.expected for e in evidence)
    parts = [f"{len(evidence)} obligations: {count[Grade.PROVED]} proved, {count[Grade.TESTED]} tested"]
    parts.append(f"{refuted} refuted as they must be")
    parts.append(f"{missed} NOT as expected" if missed else "none left open")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
