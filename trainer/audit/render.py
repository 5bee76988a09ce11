"""An audit for people and for machines: a table, Markdown, JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from karat.core.render_markdown import table
from karat.invariants.catalogue import BUILT_IN
from karat.invariants.run.audit import Audit
from karat.invariants.run.finding import Finding, Outcome, exit_code

SCHEMA = 2
STYLES = {
    "FAIL": "bold red",
    "WARN": "yellow",
    "INFO": "cyan",
    "ok": "green",
    "suppressed": "dim",
    "not decided": "dim",
}
VERDICTS = {0: "HOLDS", 1: "VIOLATED", 2: "CANNOT JUDGE"}
MOST_UNREAD = 12
LOOKED_AT = {
    "INV-1": "RUN-47 loss-trend",
    "INV-8": "its own check of the peak, and RUN-2 lr-schedule",
    "LIMIT-1": "every comparison",
}
"""The invariants whose functions an audit calls, and the checks that do."""


def verdict_line(audit: Audit) -> str:
    """The verdict as one line: how many checks failed, warned, held and could not be decided."""
    words = [finding.word for finding in audit.findings]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("FAIL", "WARN", "INFO", "ok", "not decided"))
    warned = " (with warnings)" if "WARN" in words and exit_code(audit.findings) == 0 else ""
    return f"{VERDICTS[exit_code(audit.findings)]}{warned}: {counts}"


def read_lines(audit: Audit) -> list[str]:
    """What was read and what was not: format, rows, columns, declarations, and everything not understood, by its place."""
    log = audit.log
    columns = ", ".join(f"{known} = {name!r}" for known, name in log.columns.items())
    lines = [f"{log.source}: {log.form}, {len(log.rows)} rows; {columns}"]
    declared = ", ".join(audit.intent.cite(name) for name in audit.intent.declared())
    lines.append(f"declared: {declared or 'nothing'}")
    if log.ignored:
        lines.append(f"columns left out: {', '.join(log.ignored)}")
    if audit.intent.left_out:
        lines.append(f"declared, but not to be judged from a log: {', '.join(audit.intent.left_out)}")
    lines += log.notes
    lines += [f"not understood: {problem}" for problem in log.unread[:MOST_UNREAD]]
    if len(log.unread) > MOST_UNREAD:
        lines.append(f"not understood: {len(log.unread) - MOST_UNREAD} more, all in --json")
    return lines


def catalogue_line() -> str:
    """Which invariants of the catalogue an audit looks at, and which no check here reads from a log."""
    others = ", ".join(invariant.id for invariant in BUILT_IN if invariant.id not in LOOKED_AT)
    looked = ", ".join(f"{id_} by {check}" for id_, check in LOOKED_AT.items())
    return f"of the catalogue: {looked}; from a log nothing is decided of {others}"


def _rows(audit: Audit) -> list[Finding]:
    """Violations first, by severity; then what holds; then what could not be decided."""
    order = ("FAIL", "WARN", "INFO", "suppressed", "ok", "not decided")
    return sorted(audit.findings, key=lambda finding: order.index(finding.word))


def rich_view(audit: Audit) -> Group:
    """The audit as a table for a terminal."""
    shown = Table(show_lines=True)
    for name in ("check", "result", "rows"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("seen, and what is required")
    for finding in _rows(audit):
        said = Text(finding.message)
        if finding.outcome is not Outcome.HOLDS:
            said.append(f"\nrequired: {finding.required}", style="dim")
        if finding.reason:
            said.append(f"\nsuppressed: {finding.reason}", style="dim")
        word = Text(finding.word, style=STYLES[finding.word])
        shown.add_row(f"{finding.id} {finding.slug}", word, str(finding.rows or ""), said)
    foot = (Text(catalogue_line(), style="dim"), Text(verdict_line(audit), style="bold"))
    return Group(*(Text(line) for line in read_lines(audit)), shown, *foot)


def markdown(audit: Audit) -> str:
    """The audit as a Markdown report."""
    head = ("check", "result", "at", "rows", "seen", "required")
    decided = [f for f in _rows(audit) if f.outcome is not Outcome.UNDECIDED]
    open_ = [f for f in audit.findings if f.outcome is Outcome.UNDECIDED]
    rows = [(f"{f.id} {f.slug}", f.word, f.where, f.rows, _said(f), f.required) for f in decided]
    parts = [
        "# Audit of a run from its log",
        f"**{verdict_line(audit)}**; exit code {exit_code(audit.findings)}.",
        "\n".join(f"- {line}" for line in read_lines(audit)),
        "## Decided",
        table(head, rows) if rows else "Nothing.",
        "## Not decided, and why",
        "\n".join(f"- **{f.id} {f.slug}** {f.message}; required: {f.required}" for f in open_)
        or "Everything was decided.",
        f"{catalogue_line()[0].upper()}{catalogue_line()[1:]}.",
        "FAIL: mathematics or a declaration decides. WARN: a heuristic. INFO: never an alarm.",
    ]
    return "\n\n".join(parts) + "\n"


def _said(finding: Finding) -> str:
    return f"{finding.message} (suppressed: {finding.reason})" if finding.reason else finding.message


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as JSON data."""
    log, fit = audit.log, audit.fit
    found = None
    if fit is not None:
        residual = {
            "rows_agreeing": fit.agreeing,
            "rows": fit.rows,
            "worst_in_last_digits": fit.worst,
            "fits": fit.holds,
        }
        found = {**asdict(fit.shape), "text": fit.shape.text, **residual}
    return {
        "schema_version": SCHEMA,
        "kind": "karat log audit",
        "log": {"source": log.source, "format": log.form, "rows": len(log.rows), "columns": dict(log.columns),
                "left_out": list(log.ignored), "not_understood": list(log.unread), "notes": list(log.notes)},
        "declared": {name: {"value": value, "where": audit.intent.where.get(name, "")}
                     for name, value in audit.intent.declared().items()},
        "verdict": VERDICTS[exit_code(audit.findings)],
        "exit_code": exit_code(audit.findings),
        "catalogue": {i.id: LOOKED_AT.get(i.id, "not decided from a log") for i in BUILT_IN},
        "reconstructed": found,
        "findings": [finding.record() for finding in audit.findings],
    }  # fmt: skip
