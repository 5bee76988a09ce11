"""Rows of text cells become a RunLog: columns recognised by name, numbers parsed, what is not understood named by place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from karat.core.errors import KaratError
from karat.core.run_log import COLUMNS, Row, RunLog, canonical, digits_of

EMPTY = ("", "-", "–", "—", "n/a", "na", "none", "null", "…", "...")
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d*)?|\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
MOST_UNREAD = 20
LARGEST_STEP = 1e15
"""Far above any run's, and below 2^53: steps are counted exactly."""
NEXT = "name the columns step, lr, loss, val_loss, grad_norm, … (docs/audit.md lists the names that are recognised)"


class UnreadableLog(KaratError):
    """A log that cannot be judged: no file, no table, no column that is recognised."""

    exit_code = 2


def number(text: str) -> float | None:
    """The number that a cell is: decimal, with or without thousands separators, NaN or an infinity; None for any other."""
    plain = text.strip().strip("*`_ ")
    if plain.lower().lstrip("+") in NOT_FINITE:
        return NOT_FINITE[plain.lower().lstrip("+")]
    return float(plain.replace(",", "")) if _NUMBER.fullmatch(plain) else None


def cell(value: Any) -> str | None:
    """A value as text; the largest of a list of numbers, such as a rate per group. None for what is no number or text."""
    if isinstance(value, list) and value and all(isinstance(x, str) and number(x) is not None for x in value):
        return str(max(value, key=lambda x: number(x) or 0.0))
    if value is None:
        return ""
    return value if isinstance(value, str) else None


def assemble(
    source: str, form: str, rows: Sequence[tuple[str, Mapping[str, Any]]], unread: Iterable[str] = (), notes: Iterable[str] = ()
) -> RunLog:  # fmt: skip
    """The log of (place, name -> value) rows; UnreadableLog when no column of a rate or a loss is recognised."""
    problems, names = list(unread), list(dict.fromkeys(name for _, row in rows for name in row))
    columns, ignored = _columns(names)
    if not {"lr", "loss", "val_loss", "bpb"} & set(columns):
        seen = f"no learning rate and no loss is recognised in {source} ({form}); columns: {_listed(names) or 'none'}"
        raise UnreadableLog(seen, required="a column lr or learning_rate, or loss, val_loss, bpb", next_step=NEXT)
    read: list[Row] = []
    texts: dict[str, list[str]] = {known: [] for known in columns}
    for place, row in rows:
        values: dict[str, float] = {}
        for known, name in columns.items():
            text = cell(row.get(name, ""))
            if text is not None and text.strip().lower() in EMPTY:
                continue
            value = number(text) if text is not None else None
            if value is None or (known == "step" and not 0 <= value <= LARGEST_STEP):
                problems.append(
                    f"{place}: {name} = {str(row[name])[:40]!r} is not a {'step' if known == 'step' else 'number'}"
                )
                continue
            values[known] = value
            texts[known].append(str(text))
        if values.keys() - {"step", "epoch"}:
            read.append(Row(place, values.pop("step", None), values))
    if not read:
        raise UnreadableLog(f"no row of {source} ({form}) holds a number that is understood" + "".join(
            f"\n  {p}" for p in problems[:MOST_UNREAD]), required="rows of numbers", next_step=NEXT)  # fmt: skip
    extra = [] if "step" in columns else ["no column of steps: nothing that depends on the step is decided"]
    digits = {known: digits_of(written) for known, written in texts.items()}
    return RunLog(source, form, tuple(read), columns, digits, tuple(ignored), tuple(problems), (*notes, *extra))


def _columns(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(canonical -> written name, names left out with the reason); of two for one quantity the better known is read."""
    found: dict[str, list[str]] = {}
    for name in names:
        known = canonical(name)
        if known is not None:
            found.setdefault(known, []).append(name)
    columns = {known: min(written, key=lambda n: _place(known, n)) for known, written in found.items()}
    ignored = []
    for name in names:
        known = canonical(name)
        if known is None:
            ignored.append(name)
        elif columns[known] != name:
            ignored.append(f"{name} ({known} is read from {columns[known]})")
    return columns, ignored


def _place(known: str, name: str) -> int:
    plain = name.strip().lower()
    return COLUMNS[known].index(plain) if plain in COLUMNS[known] else len(COLUMNS[known])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(n[:40] for n in names[:12]) + (" …" if len(names) > 12 else "")
