"""Which silent bugs the guards catch, how soon, by the right name, and what they say of clean runs.

    python benchmarks/guard_detection.py [--only PATTERN] [--json FILE] [--no-rivals]

Every loop of tests/corpus/loops runs in this process with `watch(..., policy="observe")`. Exit code 1 when a clean run
sets off a FAIL, when a loop breaks off, or when fewer than 95 % of the bugs are caught; 2 when no loop was run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detection import RIVALS, Judged, Run, cases, clean_loops, guarded, judge
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from karat.core.report import write_text
from karat.invariants.runtime import watch

LEAST = 0.95
"""Share of the cases that must be caught."""


def silent_watch(model: Any, optimizer: Any, **declared: Any) -> Any:
    """`watch` that keeps what it sees to itself."""
    return watch(model, optimizer, policy="observe", say=lambda text: None, **declared)


def main(arguments: list[str] | None = None, attach: Any = silent_watch) -> int:
    """Prints the tables and returns the exit code."""
    options = _options(arguments)
    torch.set_num_threads(1)
    began = time.perf_counter()
    judged = [judge(c, attach, options.rivals) for c in cases() if _wanted(c.name, options.only)]
    loops = [c for c in clean_loops() if _wanted(c.name, options.only)]
    clean = {loop.name: guarded(loop.run, attach) for loop in loops}
    if options.rivals:
        alarms = {name: sum(rival(loop.run) for loop in loops) for name, rival in RIVALS.items()}
    else:
        alarms = {}
    summary = summarise(judged, clean, alarms) | {"seconds": round(time.perf_counter() - began, 1)}
    console = Console(width=None if sys.stdout.isatty() else 190)
    console.print(table_of(judged, options.rivals))
    if (said := clean_table(judged, clean)).row_count:
        console.print(said)
    console.print(summary_table(summary))
    if options.json:
        write_text(options.json, json.dumps(record(judged, clean, summary), indent=1) + "\n")
    return exit_code(summary)


def summarise(judged: list[Judged], clean: dict[str, Run], alarms: dict[str, int]) -> dict[str, Any]:
    """Counts and shares over all cases, twins and clean loops."""
    caught = [j for j in judged if j.caught is not None]
    delays = [j.delay for j in judged if j.delay is not None]
    runs = [j.twin for j in judged] + list(clean.values())
    return {
        "cases": len(judged),
        "caught": len(caught),
        "detection_rate": len(caught) / len(judged) if judged else None,
        "right_cause": sum(j.cause for j in caught),
        "right_cause_rate": sum(j.cause for j in caught) / len(judged) if judged else None,
        "median_delay": statistics.median(delays) if delays else None,
        "delay_at_most_one": sum(d <= 1 for d in delays),
        "delays": len(delays),
        "twins": len(judged),
        "clean_loops": len(clean),
        "false_fails_twins": sum(_count(j.twin, "FAIL") > 0 for j in judged),
        "false_warns_twins": sum(_count(j.twin, "WARN") > 0 for j in judged),
        "false_fails_clean": sum(_count(run, "FAIL") > 0 for run in clean.values()),
        "false_warns_clean": sum(_count(run, "WARN") > 0 for run in clean.values()),
        "not_implemented": sum(bool(j.buggy.missing or j.twin.missing) for j in judged),
        "errors": sum(bool(run.error) for run in [*runs, *(j.buggy for j in judged)]),
        "rivals": {
            name: {
                "caught": sum(j.rivals[name][0] and not j.rivals[name][1] for j in judged if j.rivals),
                "false_twins": sum(j.rivals[name][1] for j in judged if j.rivals),
                "false_clean": alarms[name],
            }
            for name in alarms
        },
    }


def exit_code(summary: dict[str, Any]) -> int:
    """0 when all is as it must be, 1 when not, 2 when nothing was run."""
    if not summary["cases"] and not summary["clean_loops"]:
        return 2
    rate = summary["detection_rate"]
    false = summary["false_fails_twins"] + summary["false_fails_clean"]
    return int(bool(false or summary["errors"] or (rate is not None and rate < LEAST)))


def table_of(judged: list[Judged], rivals: bool) -> Table:
    """A row to each buggy loop."""
    table = Table(title="Loops with a silent bug, and their clean twins", title_justify="left")
    widths = {"about": 36, "by": 40, "twin": 24}
    for name in (
        "case",
        "about",
        "effect",
        "caught",
        "delay",
        "by",
        "severity",
        "cause",
        "twin",
        *(RIVALS if rivals else ()),
    ):
        just: Any = "right" if name in ("effect", "caught", "delay") else "left"
        table.add_column(name, justify=just, no_wrap=True, min_width=len(name), max_width=widths.get(name))
    for j in judged:
        effect = "end" if j.case.first_effect is None else str(j.case.first_effect)
        if j.broken:
            by = f"not implemented: {j.broken}" if j.buggy.missing or j.twin.missing else j.broken
            row = ["-", "-", by[:70], "", ""]
        elif j.caught is None:
            others = ", ".join(sorted({s.slug for s in j.buggy.seen}))
            row = ["-", "-", f"nothing{f' (as on the twin: {others})' if others else ''}", "", ""]
        else:
            delay = "" if j.delay is None else str(j.delay)
            caught = j.caught
            row = [str(caught.step), delay, f"{caught.id} {caught.slug}", caught.severity, "yes" if j.cause else "no"]
        marks = [_mark(*j.rivals[name]) for name in RIVALS] if j.rivals else []
        table.add_row(*map(escape, [j.case.name, j.case.about, effect, *row, _twin(j.twin), *marks]))
    return table


def clean_table(judged: list[Judged], clean: dict[str, Run]) -> Table:
    """What was said of runs of which nothing should be said; no rows when nothing was, which is as it should be."""
    table = Table(title="Said of clean runs", title_justify="left")
    for name in ("run", "rule", "severity", "step", "said"):
        table.add_column(name, overflow="fold")
    runs = {f"{j.case.name} (twin)": j.twin for j in judged} | clean
    for name, run in runs.items():
        for rule in dict.fromkeys((seen.id, seen.slug, seen.severity) for seen in run.seen):
            first = next(s for s in run.seen if (s.id, s.slug, s.severity) == rule)
            said = " ".join(first.message.split())[:150]
            table.add_row(name, f"{first.id} {first.slug}", first.severity, str(first.step), escape(said))
        if run.error:
            table.add_row(name, "", "error", "", escape(run.error[:150]))
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The figures that count."""
    table = Table(title="Summary", title_justify="left", show_header=False)
    cases_, clean = summary["cases"], summary["clean_loops"]
    rows = [("caught", f"{summary['caught']} of {cases_}{_share(summary['detection_rate'])}, at least {LEAST:.0%} wanted"),
            ("right cause named", f"{summary['right_cause']} of {cases_}{_share(summary['right_cause_rate'])}"),
            ("delay in steps", f"median {summary['median_delay']}; {summary['delay_at_most_one']} of "
                               f"{summary['delays']} within one step"),
            ("false FAILs", f"{summary['false_fails_twins']} of {cases_} twins, "
                            f"{summary['false_fails_clean']} of {clean} clean loops; none wanted"),
            ("false WARNs", f"{summary['false_warns_twins']} of {cases_} twins, "
                            f"{summary['false_warns_clean']} of {clean} clean loops"),
            ("not implemented, errors", f"{summary['not_implemented']}, {summary['errors']}")]  # fmt: skip
    names = {
        "anomaly": "torch.autograd.set_detect_anomaly",
        "loss": "a watcher of the loss (NaN, or higher at the end)",
    }
    for name, rival in summary["rivals"].items():
        text = f"{rival['caught']} of {cases_} caught; false on {rival['false_twins']} twins, {rival['false_clean']} of {clean}"
        rows.append((names[name], text))
    rows.append(("seconds, all of it", f"{summary['seconds']}"))
    for left, right in rows:
        table.add_row(left, right)
    return table


def record(judged: list[Judged], clean: dict[str, Run], summary: dict[str, Any]) -> dict[str, Any]:
    """All of it as JSON data."""
    return {
        "kind": "karat guard detection",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "summary": summary,
        "cases": [
            {"name": j.case.name, "about": j.case.about, "rules": sorted(j.case.rules), "source": j.case.source,
             "needs": j.case.needs, "first_effect": j.case.first_effect, "caught": _seen(j.caught), "delay": j.delay,
             "cause": j.cause, "buggy": _run(j.buggy), "twin": _run(j.twin), "rivals": j.rivals}
            for j in judged
        ],
        "clean": {name: _run(run) for name, run in clean.items()},
    }  # fmt: skip


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="", help="loops whose name matches, or contains it")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything as JSON")
    parser.add_argument("--no-rivals", dest="rivals", action="store_false", help="the guards alone, which is faster")
    return parser.parse_args(arguments)


def _wanted(name: str, pattern: str) -> bool:
    return not pattern or pattern in name or fnmatch.fnmatchcase(name, pattern)


def _count(run: Run, severity: str) -> int:
    return sum(seen.severity == severity for seen in run.seen)


def _twin(run: Run) -> str:
    return "quiet" if not run.seen else ", ".join(sorted({f"{s.severity} {s.slug}" for s in run.seen}))


def _mark(buggy: bool, twin: bool) -> str:
    return "both" if buggy and twin else "caught" if buggy else "false" if twin else ""


def _share(rate: float | None) -> str:
    return "" if rate is None else f", {rate:.1%}"


def _seen(seen: Any) -> dict[str, Any] | None:
    return None if seen is None else vars(seen)


def _run(run: Run) -> dict[str, Any]:
    return {**vars(run), "seen": [vars(seen) for seen in run.seen], "seconds": round(run.seconds, 4)}


if __name__ == "__main__":
    sys.exit(main())
