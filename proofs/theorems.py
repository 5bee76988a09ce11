"""The theorems in Coq: checked, or pinned.

    python -m karat.proofs.theorems                     # make coq
    python -m karat.proofs.theorems --accept INV-4      # make accept-coq ID=INV-4: show what changed, and pin it
    python -m karat.proofs.theorems --recheck           # coqchk, an independent checker, over every file: minutes

Exit code 0: every theorem is proved. 1: one is refuted or vacuous. 2: one could not be judged, or there is no Coq.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from karat.core.errors import KaratError
from karat.core.evidence import Evidence, Grade
from karat.invariants.catalogue import find
from karat.invariants.coq_sources import closure
from karat.proofs.cache import Cache, coq_version, key_of
from karat.proofs.coq_build import BUILD, INSTALL
from karat.proofs.coq_step import accept, theorem_evidence, theorems_of
from karat.proofs.coq_text import ALLOWED_AXIOMS, flat
from karat.proofs.worker import invariants


def recheck(files: Sequence[str], console: Console, build: Path = BUILD) -> int:
    """coqchk over the compiled files, an independent checker of proof terms: 0 when it accepts them and finds no axiom
    beyond the standard reals'; 2 when it does not, or is not there."""
    if shutil.which("coqchk") is None:
        console.print(f"coqchk is not installed: {INSTALL}", highlight=False)
        return 2
    names = sorted({name for file in files for name in closure(file)})
    command = ["coqchk", "-silent", "-o", "-Q", ".", "Karat", *(f"Karat.{name}" for name in names)]
    done = subprocess.run(command, cwd=build, check=False, capture_output=True, text=True)
    console.print(done.stdout + done.stderr, highlight=False, markup=False, soft_wrap=True)
    refused = unexpected(done.stdout) if done.returncode == 0 else [f"coqchk ended with {done.returncode}"]
    told = f"REFUSED: {'; '.join(refused)}" if refused else "accepted, on the axioms of the standard reals alone"
    console.print(f"coqchk: {len(names)} files {told}", highlight=False, markup=False, soft_wrap=True)
    return 2 if refused else 0


def unexpected(summary: str) -> list[str]:
    """What coqchk's summary names beyond the axioms of the standard reals; and that there is no summary."""
    parts = dict(re.findall(r"^\* ([^:\n]+):(.*(?:\n    .*)*)", summary, re.M))
    if "Axioms" not in parts or len(parts) < 4:
        return ["no summary that can be read"]
    axioms = [name for name in parts.pop("Axioms").split() if name != "<none>"]
    allowed = tuple(f".{name}" for name in ALLOWED_AXIOMS)
    found = [name for name in axioms if not (name.startswith(("Coq.", "Stdlib.")) and name.endswith(allowed))]
    parts.pop("Theory", None)
    return found + [f"{what}: {flat(names)}" for what, names in parts.items() if flat(names) != "<none>"]


def show(found: Sequence[Evidence], console: Console) -> None:
    """A row per theorem; then what is wrong with those that are not proved."""
    table = Table(box=None, pad_edge=False)
    for name, options in (("theorem", {"no_wrap": True}), ("claim", {"ratio": 1}), ("rests on", {"no_wrap": True}),
                          ("status", {}), ("its file", {"justify": "right", "no_wrap": True})):  # fmt: skip
        table.add_column(name, **options)
    for e in found:
        style = "green" if e.grade is Grade.PROVED else "bold red"
        table.add_row(e.obligation, escape(e.claim), e.detail if e.expected else "", f"[{style}]{e.grade.name}[/]",
                      f"{e.seconds:.1f} s")  # fmt: skip
    console.print(table)
    for e in (e for e in found if e.grade is not Grade.PROVED):
        console.print(f"\n[bold red]{e.obligation}[/] {e.grade.name}: ", end="", highlight=False)
        console.print(e.detail, highlight=False, markup=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m karat.proofs.theorems", description=__doc__.split("\n\n")[0])
    top.add_argument("--only", action="append", metavar="INV-8", help="this invariant only (repeatable)")
    top.add_argument("--accept", action="append", metavar="INV-4", help="pin its statements as they are now")
    top.add_argument("--recheck", action="store_true", help="have coqchk check the compiled files too (minutes)")
    top.add_argument("--no-cache", action="store_true", help="compile and ask anew, whatever is kept")
    top.add_argument("--out", type=Path, default=Path("build/verify"), help="folder with the results that are kept")
    top.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files at a time")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except KaratError as error:
        print(f"coq: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("coq: interrupted; what was compiled is kept: make coq goes on from there", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    chosen = [find(name) for name in (options.accept or options.only or ())] or list(invariants())
    theorems = theorems_of(o for invariant in chosen for o in invariant.obligations)
    console = Console() if sys.stdout.isatty() else Console(width=170)
    if options.accept:
        changes, done = accept(theorems, options.jobs)
        console.print("\n".join(changes) or "nothing changed", highlight=False, markup=False, soft_wrap=True)
        return 0 if done else 2
    if options.no_cache:
        shutil.rmtree(BUILD, ignore_errors=True)
    cache = Cache(None if options.no_cache else options.out / "cache")
    keys = {theorem.id: key_of(theorem) for theorem in theorems}
    found = {t.id: kept for t in theorems if (kept := cache.evidence(keys[t.id])) is not None}
    before = len(found)
    with Console(stderr=True).status("Coq: compiling, asking, comparing"):
        for theorem, evidence_ in theorem_evidence([t for t in theorems if t.id not in found], options.jobs):
            found[theorem.id] = evidence_
            cache.keep_evidence(keys[theorem.id], evidence_)
    in_order = [found[theorem.id] for theorem in theorems]
    show(in_order, console)
    proved, files = sum(e.grade is Grade.PROVED for e in in_order), {theorem.file for theorem in theorems}
    told = f" ({before} kept from before; --no-cache compiles anew)" if before else ""
    seconds = time.perf_counter() - start
    summary = f"{proved} of {len(theorems)} theorems in {len(files)} files proved by Coq {coq_version()}"
    console.print(f"\n{summary} in {seconds:.1f} s{told}", highlight=False, soft_wrap=True)
    code = _exit_code(in_order)
    if options.recheck and code == 0:
        code = recheck(sorted(files), console)
    return code


def _exit_code(found: Iterable[Evidence]) -> int:
    """0: every one proved. 1: one is refuted or vacuous. 2: one could not be judged, or there is no Coq."""
    grades = [e.grade for e in found]
    if any(grade in (Grade.REFUTED, Grade.VACUOUS) for grade in grades):
        return 1
    return 0 if all(grade is Grade.PROVED for grade in grades) else 2


if __name__ == "__main__":
    sys.exit(main())
