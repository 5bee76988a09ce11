"""Tables in text: Markdown tables, and columns of plain text under a header of names. Everything by line number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from karat.core.run_log import RunLog, canonical
from karat.trainer.audit.assemble import NEXT, UnreadableLog, assemble, number

_RULE = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*")
_GAP = re.compile(r"\s{2,}|\t")


@dataclass
class Table:
    """A table as found: its line, its names, its rows by line number, and the lines in it that are no row."""

    line: int
    names: list[str]
    rows: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def known(self) -> set[str]:
        return {known for name in self.names if (known := canonical(name))}


def read_tables(source: str, text: str) -> RunLog:
    """The log that a text holds as a table: of those with a step and a rate or a loss, the one with most rows."""
    lines = text.splitlines()
    tables = [t for t in (*_markdown(lines), *_plain(lines)) if t.rows and t.known & {"lr", "loss", "val_loss", "bpb"}]
    logs = [t for t in tables if "step" in t.known] or tables
    if not logs:
        raise UnreadableLog(
            f"{source} holds no table of a run", required="a header such as: step  loss  lr", next_step=NEXT
        )
    table = max(logs, key=lambda t: (len(t.rows), len(t.known)))
    others = [str(t.line) for t in logs if t is not table]
    notes = (
        [f"of {len(logs)} tables the one at line {table.line} is judged; others at {', '.join(others)}"]
        if others
        else []
    )
    return assemble(source, f"table at line {table.line}", table.rows, table.unread, notes)


def _markdown(lines: Sequence[str]) -> list[Table]:
    """Every Markdown table: a line of names, a line of dashes, rows."""
    tables = []
    for at in range(1, len(lines)):
        if "|" in lines[at - 1] and "|" in lines[at] and _RULE.fullmatch(lines[at]):
            table = Table(at, _cells(lines[at - 1]))
            for place in range(at + 1, len(lines)):
                if "|" not in lines[place]:
                    break
                _add(table, place + 1, _cells(lines[place]))
            tables.append(table)
    return tables


def _cells(line: str) -> list[str]:
    return [part.strip().strip("*` ") for part in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _plain(lines: Sequence[str]) -> list[Table]:
    """Every block of lines under a line of at least two recognised names, until an empty line or one of other form."""
    tables = []
    for at, line in enumerate(lines):
        names = _split(line, None)
        if (
            "|" in line
            or sum(canonical(name) is not None for name in names) < 2
            or any(number(n) is not None for n in names)
        ):
            continue
        table = Table(at + 1, names)
        for place in range(at + 1, len(lines)):
            cells = _split(lines[place], len(names))
            numeric = sum(number(c) is not None for c in cells[: len(names)])
            if not cells or (numeric < 2 and len(cells) != len(names)):
                break
            if set(lines[place].strip()) <= set("-=+ "):
                continue
            _add(table, place + 1, cells)
        tables.append(table)
    return tables


def _split(line: str, count: int | None) -> list[str]:
    """The cells of a line: at gaps of two spaces or tabs; at single spaces where that gives too few."""
    wide = [part for part in _GAP.split(line.strip()) if part]
    return line.split() if len(wide) < (count or 2) else wide


def _add(table: Table, line: int, cells: Sequence[str]) -> None:
    """Adds a row; one of too few cells, or with no number at all, is named instead. Cells past the last name are remarks."""
    if len(cells) < len(table.names):
        table.unread.append(f"line {line}: {len(cells)} cells for the {len(table.names)} columns of line {table.line}")
    elif all(number(c) is None for c in cells[: len(table.names)]):
        table.unread.append(f"line {line}: no number in {' '.join(cells)[:60]!r}")
    else:
        table.rows.append((f"line {line}", dict(zip(table.names, cells, strict=False))))
