"""`make verify`: proves the catalogue, prints a row per obligation, writes report.json, report.md and the proof lock.

Then every running function is mutated, and each mutant that is not equivalent must be refuted by some obligation.

Exit code 0: everything is as expected. 1: something is refuted or vacuous, or a mutant survived. 2: something could
not be judged. What was decided before, of the same code by the same tools, is kept (--no-cache decides anew). The lock
is written only when everything was verified and is as expected: it says what is proved, not what was tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from karat.core.errors import KaratError
from karat.core.evidence import Evidence, Grade, MutantRecord, MutantState, Score, exit_code, score_line, unjudged
from karat.core.invariant import Invariant
from karat.core.obligation import Obligation
from karat.core.provenance import code_revision, environment
from karat.core.render_markdown import verification_markdown
from karat.core.report import (
    GREEN,
    FileReach,
    Proof,
    ProofLock,
    VerificationReport,
    read_lock,
    write_report,
    write_text,
)
from karat.invariants.catalogue import BUILT_IN, find, found
from karat.invariants.standing import LOCK, fingerprints, guard_fingerprints
from karat.proofs.cache import TOOLS, Cache, key_of, key_of_trial
from karat.proofs.coq_step import theorem_evidence, theorems_of
from karat.proofs.mutation import trials
from karat.proofs.plugin_locks import write_plugin_locks
from karat.proofs.reach import reach
from karat.proofs.worker import decide_all, invariants, judge_all

STYLES = {Grade.PROVED: "green", Grade.TESTED: "cyan", Grade.REFUTED: "bold red", Grade.VACUOUS: "bold red"}


def verify(
    obligations: Sequence[Obligation], chosen: Sequence[Invariant], jobs: int, console: Console, cache: Cache
) -> tuple[list[Evidence], list[MutantRecord]]:
    """Decides the obligations, then judges the mutants of the functions that they are about; in the catalogue's order.

    Mutants are judged of an invariant whose obligations are all as expected: until then there is nothing to hold against.
    """
    everything = invariants()
    keys = {o.id: key_of(o) for o in obligations}
    decided = {o.id: kept for o in obligations if (kept := cache.evidence(keys[o.id])) is not None}
    columns = (
        TextColumn("{task.fields[what]:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", what="verify", total=len(obligations), completed=len(decided))
        left = [o for o in obligations if o.id not in decided]
        theorems = theorems_of(left)
        if theorems:
            progress.update(task, description="Coq")
        for obligation, evidence in chain(
            theorem_evidence(theorems, jobs), decide_all([o for o in left if o not in theorems], jobs)
        ):
            decided[obligation.id] = evidence
            cache.keep_evidence(keys[obligation.id], evidence)
            progress.update(task, advance=1, description=obligation.id)
        progress.update(task, description="")
        evidence_in_order = [decided[obligation.id] for obligation in obligations]
        missed = unjudged(evidence_in_order)
        groups = trials(
            [i for i in chosen if i.id not in missed], everything, {id_: e.seconds for id_, e in decided.items()}
        )
        keys |= {o.id: key_of(o) for i in everything for o in i.obligations if o.id not in keys}
        trial_keys = {id(trial): key_of_trial(trial, keys) for trial in groups}
        judged = {id(t): known for t in groups if (known := cache.mutants(trial_keys[id(t)])) is not None}
        total = sum(len(trial.mutants) for trial in groups)
        done = sum(len(records) for records in judged.values())
        task = progress.add_task("", what="mutants", total=total, completed=done)
        for trial, records in judge_all([t for t in groups if id(t) not in judged], jobs):
            judged[id(trial)] = records
            cache.keep_mutants(trial_keys[id(trial)], records)
            progress.update(task, advance=len(records), description=trial.module.removeprefix("karat."))
    return evidence_in_order, [record for trial in groups for record in judged[id(trial)]]


def show(evidence: Sequence[Evidence], console: Console) -> None:
    """Prints the table, then every result that is not as expected, with its counterexample."""
    table = Table(box=None, pad_edge=False)
    for name, options in (("obligation", {"no_wrap": True}), ("claim", {"ratio": 1}), ("engine", {"no_wrap": True}),
                          ("status", {}), ("time", {"justify": "right", "no_wrap": True})):  # fmt: skip
        table.add_column(name, **options)
    for e in evidence:
        style = ("dim" if e.must_fail else STYLES.get(e.grade, "yellow")) if not e.missed else "bold red"
        table.add_row(e.obligation, escape(e.claim), e.engine, f"[{style}]{e.label}[/]", f"{e.seconds:.2f} s")
    console.print(table)
    for e in evidence:
        if not e.missed:
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


def show_mutants(
    evidence: Sequence[Evidence], mutants: Sequence[MutantRecord], reached: Sequence[FileReach], console: Console
) -> None:
    """Prints the mutation score and of what it is, every survivor by file and line, the formulas' lines no proof ran."""
    left_out = unjudged(evidence)
    if mutants or left_out:
        line = f"mutation score: {score_line(evidence, mutants)}"
        console.print(f"\n[bold red]{line}[/]" if left_out else f"\n{line}", highlight=False, soft_wrap=True)
    for record in mutants:
        if record.state is MutantState.SURVIVED:
            text = f"{record.where} {record.function}: {record.change}"
            console.print(f"  [bold red]SURVIVED[/] {escape(text)}" + (f" ({escape(record.by)})" if record.by else ""))
    if not reached:
        return
    lines, proved = sum(f.lines for f in reached), sum(f.proved for f in reached)
    console.print(f"reach of proofs: {proved} of {lines} lines of core/formulas", highlight=False)
    for file in reached:
        if file.none:
            console.print(f"  [bold red]no proof ran[/] {file.file}:{', '.join(map(str, file.none))}", highlight=False)


def lock_of(
    evidence: Sequence[Evidence], mutants: Sequence[MutantRecord], kept: ProofLock | None, solver: dict[str, str]
) -> ProofLock:
    """What is to be locked: every obligation with its grade, its functions and what it assumes; the mutation scores.

    A slow obligation, or one whose tool is not installed, stays as it was if what it rests on is as it was.
    """
    proofs: dict[str, dict[str, Proof]] = {}
    for e in (e for e in evidence if e.grade is not Grade.UNAVAILABLE):
        proofs.setdefault(e.invariant, {})[e.obligation] = Proof(
            claim=e.claim, engine=e.engine, grade=e.grade.name, about=e.about, assumes=e.assumes, detail=e.detail,
            hypotheses=e.checks.get("hypotheses needed", ""), slow=e.slow,
        )  # fmt: skip
    guarded = [i for i in BUILT_IN if i.id in proofs]
    for invariant in guarded:
        old = kept.proofs.get(invariant.id, {}) if kept else {}
        for obligation in invariant.obligations:
            absent = not obligation.demanded and obligation.id not in proofs[invariant.id]
            proof = old.get(obligation.id) if absent else None
            if proof and proof.about == fingerprints(obligation) and proof.grade in GREEN:
                proofs[invariant.id][obligation.id] = proof
        found = proofs[invariant.id]
        proofs[invariant.id] = {
            o.id: found[o.id] for o in invariant.obligations if o.id in found
        }  # equal locks, equal files
    scores = {i.id: Score.of(m for m in mutants if i.id in m.invariants) for i in guarded}
    return ProofLock(
        solver=solver, proofs=proofs, guards={i.id: guard_fingerprints(i) for i in guarded}, mutants=scores
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="trainer verify", description=__doc__.split("\n\n")[0])
    top.add_argument(
        "--only",
        action="append",
        metavar="INV-8",
        help="verify this invariant only (repeatable); writes no lock but a plug-in's own",
    )
    top.add_argument("--slow", action="store_true", help="also what takes minutes: obligations of the slow tier")
    top.add_argument("--json", action="store_true", help="print report.json instead of tables")
    top.add_argument("--no-cache", action="store_true", help="prove everything anew, whatever is kept")
    top.add_argument("--out", type=Path, default=Path("build/verify"), help="folder for report.json and report.md")
    top.add_argument("--lock", type=Path, default=LOCK, help="the proof lock to write")
    top.add_argument("--no-lock", action="store_true", help="do not write the lock")
    top.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Results on standard output, progress on standard error."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except KaratError as error:
        print(f"verify: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    only = [find(name, invariants()) for name in options.only or ()]
    chosen = list({i.id: i for i in only}.values()) or list(invariants())
    obligations = [o for invariant in chosen for o in invariant.obligations if options.slow or not o.slow]
    cache = Cache(None if options.no_cache else options.out / "cache")
    evidence, mutants = verify(obligations, chosen, max(1, options.jobs), Console(stderr=True), cache)
    broken = () if options.only else found().broken
    code = exit_code(evidence, mutants) or (2 if broken else 0)
    tools = environment(TOOLS)
    reached = reach(evidence)
    report = VerificationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=code_revision(Path(__file__).parents[1]),
        environment=tools,
        evidence=tuple(evidence),
        mutants=tuple(mutants),
        reach=reached,
        exit_code=code,
        seconds=round(time.perf_counter() - start, 1),
    )
    name = "only" if options.only else "report"  # the report of a part does not take the place of the whole
    written = write_report(options.out / f"{name}.json", report)
    write_text(options.out / f"{name}.md", verification_markdown(report))
    locked = _lock(options, evidence, mutants, tools)
    if options.json:
        print((options.out / f"{name}.json").read_text(encoding="utf-8"), end="")
        return code
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # in a file or a log: a row per obligation
    show(evidence, console)
    show_mutants(evidence, mutants, () if options.only else reached, console)
    kept = sum(e.cached for e in evidence)
    told = f" ({kept} kept from before; --no-cache proves them anew)" if kept else ""
    console.print(f"\n{_summary(evidence)} in {report.seconds} s{told}; {locked}", highlight=False, soft_wrap=True)
    if not options.no_lock:
        for line in write_plugin_locks(
            found().plugins, evidence, mutants, {name: tools[name] for name in TOOLS}, options.out
        ):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for error in broken:
        print(f"verify: left out: {error}", file=sys.stderr)
    console.print(f"{options.out / f'{name}.md'}   digest {written[:16]}…", highlight=False, soft_wrap=True)
    return code


def _lock(
    options: argparse.Namespace, evidence: Sequence[Evidence], mutants: Sequence[MutantRecord], tools: dict[str, str]
) -> str:
    plugged_in = {plugin.invariant.id for plugin in found().plugins}
    built_in = {i.id for i in BUILT_IN}
    if options.only or options.no_lock:
        return "karat's own lock not written"
    own = [e for e in evidence if e.invariant not in plugged_in]
    if (
        exit_code(own, [m for m in mutants if not set(m.invariants) <= plugged_in]) != 0
    ):  # a plug-in's failure is its own
        return f"{options.lock.name} left as it was"
    ours = [e for e in evidence if e.invariant in built_in]
    lock = lock_of(ours, mutants, _kept(options.lock), {name: tools[name] for name in TOOLS})
    write_text(options.lock, lock.model_dump_json(indent=1) + "\n")
    return f"{options.lock.name} written"


def _kept(path: Path) -> ProofLock | None:
    """The lock that is there, or None when there is none that can be read: it is about to be written anew."""
    try:
        return read_lock(path)
    except KaratError as error:
        if path.exists():
            print(
                f"verify: {path.name} cannot be read and is written anew, without slow proofs: {error}", file=sys.stderr
            )
        return None


def _summary(evidence: Sequence[Evidence]) -> str:
    count = {grade: sum(e.grade is grade and not e.must_fail for e in evidence) for grade in Grade}
    refuted = sum(e.must_fail and e.expected for e in evidence)
    missed = sum(e.missed for e in evidence)
    parts = [f"{len(evidence)} obligations: {count[Grade.PROVED]} proved, {count[Grade.TESTED]} tested"]
    parts.append(f"{refuted} refuted as they must be")
    parts.append(f"{missed} NOT as expected" if missed else "none left open")
    if absent := [e for e in evidence if not e.expected and not e.missed]:
        parts.append(f"{len(absent)} UNAVAILABLE ({absent[0].detail})")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
