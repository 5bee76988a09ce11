"""`make second-opinion`: every query that Z3 was asked, decided again by cvc5; writes the queries as SMT-LIB and a report.

Goals, completeness of paths, hypotheses, refutations and the checks against vacuous claims are replayed alike, sat and
unsat. A query on which the two contradict each other is an ERROR. Where cvc5 finds no answer in its time there is no
second opinion: counted, not green, no error.

Exit code 0: nothing is contradicted, and something is confirmed. 2: a contradiction, a text that cvc5 refuses or that
does not say what Z3 was asked, an obligation whose queries could not be recorded, or nothing confirmed at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from karat.core.errors import KaratError
from karat.core.evidence import Record
from karat.core.obligation import BitLaw, FloatLaw, Formula, Obligation
from karat.core.provenance import environment
from karat.core.report import SCHEMA, write_report, write_text
from karat.invariants.catalogue import find
from karat.proofs.cvc5_solver import Answer, Solver, child
from karat.proofs.queries import Query, recording
from karat.proofs.worker import WATCHDOG_SECONDS, decide, invariants

SECONDS = 20.0
REPLAYED = (Formula, FloatLaw, BitLaw)
"""The obligations that Z3 decides; the others ask no solver."""

AGREED, NONE, DISAGREED, REFUSED = "agreed", "no opinion", "DISAGREED", "REFUSED"
_QUERIES = TypeAdapter(list[Query])


class Replay(Record):
    """One query decided twice. how: the way in which cvc5 found its answer, or why it has none."""

    purpose: str
    z3: str
    cvc5: str
    verdict: str
    how: str
    seconds: float
    file: str


class Opinion(Record):
    """What cvc5 says to all queries of one obligation. note: why there are none, when they could not be recorded."""

    obligation: str
    engine: str
    replays: tuple[Replay, ...]
    note: str = ""

    def count(self, verdict: str) -> int:
        """How many queries came out so."""
        return sum(replay.verdict == verdict for replay in self.replays)

    @property
    def error(self) -> bool:
        """Whether this obligation makes the whole an error."""
        return not self.replays or self.count(DISAGREED) + self.count(REFUSED) > 0


class SecondOpinionReport(Record):
    """What one `make second-opinion` found out."""

    schema_version: int = SCHEMA
    kind: str = "karat second opinion"
    environment: dict[str, str]
    seconds_per_query: float
    counts: dict[str, int]
    by_purpose: dict[str, dict[str, int]]
    opinions: tuple[Opinion, ...]
    exit_code: int
    seconds: float


def verdict(query: Query, answer: Answer) -> str:
    """How the two answers stand to each other; an `unknown` on either side is no opinion."""
    if answer.error or not query.faithful:
        return REFUSED
    if answer.result == "none" or query.answer == "unknown":
        return NONE
    return AGREED if answer.result == query.answer else DISAGREED


def replay(obligation: Obligation, queries: Sequence[Query], solver: Solver, folder: Path) -> Opinion:
    """Writes the queries to files and asks the solver each of them."""
    _clear(obligation, folder)
    replays = []
    for place, query in enumerate(queries, start=1):
        path = folder / f"{obligation.id}-{place}.smt2"
        head = f"; {obligation.id}, query {place} of {len(queries)}: {query.purpose}\n; Z3 answers {query.answer}\n"
        write_text(path, head + query.text)
        answer = solver.answer(query.text, query.witness)
        how = answer.how if query.faithful else "the text does not say what Z3 was asked"
        replays.append(
            Replay(
                purpose=query.purpose,
                z3=query.answer,
                cvc5=answer.result,
                verdict=verdict(query, answer),
                how=how,
                seconds=answer.seconds,
                file=path.name,
            )
        )
    return Opinion(obligation=obligation.id, engine=obligation.engine, replays=tuple(replays))


def _clear(obligation: Obligation, folder: Path) -> None:
    """Removes the obligation's queries of an earlier run, of which there may have been more."""
    for path in folder.glob(f"{obligation.id}-*.smt2"):
        if path.stem.removeprefix(f"{obligation.id}-").isdigit():
            path.unlink()


def _record(obligation_id: str, pipe: Connection) -> None:
    obligation = next(o for i in invariants() for o in i.obligations if o.id == obligation_id)
    with recording() as queries:
        decide(obligation)
    pipe.send(_QUERIES.dump_json(queries).decode())
    pipe.close()


def recorded(obligation: Obligation, watchdog: float = WATCHDOG_SECONDS) -> list[Query]:
    """The queries of an obligation of the catalogue, asked in a process of its own; none when it does not end."""
    process, receive = child(_record, obligation.id)
    try:
        return _QUERIES.validate_json(receive.recv()) if receive.poll(watchdog) else []
    except (EOFError, ConnectionResetError):
        return []
    finally:
        receive.close()
        process.kill()
        process.join()


def second_opinions(
    obligations: Sequence[Obligation], out: Path, *, seconds: float = SECONDS, jobs: int = 1
) -> Iterator[Opinion]:
    """cvc5's opinion of every obligation that Z3 decides, in their order; the queries lie in out/smt2."""

    def opinion(obligation: Obligation) -> Opinion:
        queries = recorded(obligation)
        if not queries:
            return Opinion(
                obligation=obligation.id, engine=obligation.engine, replays=(), note="no query could be recorded"
            )
        with Solver(seconds) as solver:
            return replay(obligation, queries, solver, out / "smt2")

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(opinion, [o for o in obligations if isinstance(o, REPLAYED)])


def exit_code(opinions: Sequence[Opinion]) -> int:
    """0: nothing is contradicted and something is confirmed. 2 otherwise."""
    return 2 if any(o.error for o in opinions) or not any(o.count(AGREED) for o in opinions) else 0


def summary(opinions: Sequence[Opinion]) -> str:
    """What share was confirmed, in a line."""
    count = Counter(replay.verdict for o in opinions for replay in o.replays)
    total, whole = count.total(), sum(o.count(AGREED) == len(o.replays) > 0 for o in opinions)
    share = f"{count[AGREED]} of {total} queries confirmed" + (f" ({count[AGREED] / total:.1%})" if total else "")
    parts = [share, f"{count[NONE]} no opinion", f"{count[DISAGREED]} disagreed", f"{count[REFUSED]} refused"]
    return ", ".join(parts) + f"; {whole} of {len(opinions)} obligations confirmed in every query"


def show(opinions: Sequence[Opinion], console: Console) -> None:
    """Prints a row per obligation, then every query that is not confirmed."""
    table = Table(box=None, pad_edge=False)
    table.add_column("obligation", no_wrap=True)
    for name in ("queries", AGREED, NONE, "disagreed", "refused", "time"):
        table.add_column(name, justify="right")
    for o in opinions:
        counts = [o.count(name) for name in (AGREED, NONE, DISAGREED, REFUSED)]
        spent = sum(replay.seconds for replay in o.replays)
        style = "bold red" if o.error else "green" if counts[0] == len(o.replays) else "yellow"
        table.add_row(o.obligation, str(len(o.replays)), *map(str, counts), f"{spent:.2f} s", style=style)
    console.print(table)
    for o in opinions:
        if o.note:
            console.print(f"{o.obligation}: {o.note}", markup=False, highlight=False)
        for replay in o.replays:
            if replay.verdict != AGREED:
                said = f"Z3 {replay.z3}, cvc5 {replay.cvc5} ({replay.how})"
                console.print(
                    f"{replay.verdict:10}  {replay.file}, {replay.purpose}: {said}", markup=False, highlight=False
                )


def report_of(opinions: Sequence[Opinion], seconds_per_query: float, seconds: float) -> SecondOpinionReport:
    """The record of a run."""
    replays = [replay for o in opinions for replay in o.replays]
    purposes = {
        purpose: [r for r in replays if r.purpose == purpose] for purpose in sorted({r.purpose for r in replays})
    }
    return SecondOpinionReport(
        environment=environment(("z3-solver", "cvc5")),
        seconds_per_query=seconds_per_query,
        counts=dict(Counter(r.verdict for r in replays)),
        by_purpose={purpose: dict(Counter(r.verdict for r in some)) for purpose, some in purposes.items()},
        opinions=tuple(opinions),
        exit_code=exit_code(opinions),
        seconds=round(seconds, 1),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Results on standard output, progress on standard error."""
    parser = argparse.ArgumentParser(prog="python -m karat.proofs.second_opinion", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", metavar="INV-8", help="this invariant only (repeatable)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/verify"), help="folder for smt2/ and second-opinion.json"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for a query, shared by cvc5's ways of searching"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="obligations at a time")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        chosen = [find(name, invariants()) for name in options.only] if options.only else list(invariants())
        opinions = []
        asked = [o for invariant in chosen for o in invariant.obligations]
        for opinion in second_opinions(asked, options.out, seconds=options.seconds, jobs=max(1, options.jobs)):
            opinions.append(opinion)
            print(f"second opinion: {opinion.obligation}, {opinion.count(AGREED)} agreed", file=sys.stderr)
        report = report_of(opinions, options.seconds, time.perf_counter() - start)
        write_report(options.out / "second-opinion.json", report)
    except KaratError as error:
        print(f"second opinion: {error}", file=sys.stderr)
        return error.exit_code
    show(opinions, Console(width=None if sys.stdout.isatty() else 170))
    print(f"\n{summary(opinions)}; {report.seconds} s\n{options.out / 'second-opinion.json'}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
