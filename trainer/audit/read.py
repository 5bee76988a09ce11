"""A log's file becomes a RunLog: JSON lines, trainer_state.json, CSV, TensorBoard events, tables in text."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karat.core.run_log import RunLog, canonical
from karat.invariants.run.intent import Intent
from karat.trainer.audit.assemble import NEXT, UnreadableLog, assemble
from karat.trainer.audit.declarations import declared_in_text
from karat.trainer.audit.tables import read_tables
from karat.trainer.audit.tensorboard import looks_like_events, read_events

LARGEST = 512 * 2**20
"""Bytes. A log beyond that is refused rather than read into memory."""
SUMMARY = "train_runtime"
"""Hugging Face writes one last entry with totals: its train_loss is a mean over the run, not a step's."""


def read_log(path: Path) -> tuple[RunLog, Intent]:
    """The log in a file, or in a run's folder, and what the file itself declares; UnreadableLog when there is none."""
    path = _file_of(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UnreadableLog(f"{path} has {path.stat().st_size:,} bytes", required=f"at most {LARGEST:,}")
        content = path.read_bytes()
    except OSError as error:
        seen = f"{path} cannot be read: {error.strerror or error}"
        raise UnreadableLog(seen, required="the log of a run", next_step="trainer audit LOG") from None
    if looks_like_events(content):
        rows, unread = read_events(content)
        return assemble(str(path), "TensorBoard events", rows, unread), Intent()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableLog(
            f"{path} is not UTF-8 text (line {line})", required="JSONL, CSV, JSON, a table or events"
        ) from None
    if not text.strip():
        raise UnreadableLog(f"{path} is empty", required="the log of a run", next_step=NEXT)
    return _text_log(path, text)


def _file_of(path: Path) -> Path:
    """The log in a run's folder: log.jsonl, trainer_state.json or the one event file."""
    if not path.is_dir():
        return path
    events = sorted(path.glob("events.out.tfevents.*"))
    found = [p for p in (path / "log.jsonl", path / "trainer_state.json") if p.is_file()] or events
    if len(found) != 1:
        seen = f"the folder {path} holds {'no log' if not found else ', '.join(p.name for p in found)}"
        raise UnreadableLog(
            seen, required="log.jsonl, trainer_state.json or one event file", next_step="trainer audit FILE"
        )
    return found[0]


def _text_log(path: Path, text: str) -> tuple[RunLog, Intent]:
    start = text.lstrip()[:1]
    if start in "{[":
        whole = _loads(text)
        if isinstance(whole, dict) and "log_history" in whole:
            return _trainer_state(path, whole)
        if isinstance(whole, list):
            return assemble(
                str(path), "JSON", _objects([(f"entry {k + 1}", x) for k, x in enumerate(whole)], [])
            ), Intent()
        return _json_lines(path, text), Intent()
    head = text.lstrip().splitlines()[0]
    for delimiter in (",", "\t", ";"):
        known = sum(canonical(name) is not None for name in head.split(delimiter))
        if delimiter in head and (path.suffix.lower() in (".csv", ".tsv") or known > 1):
            return _csv(path, text, delimiter), Intent()
    return read_tables(str(path), text), declared_in_text(text)


def _loads(text: str) -> Any:
    """JSON with its numbers as text, as written; None when it is none."""
    try:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None


def _json_lines(path: Path, text: str) -> RunLog:
    unread: list[str] = []
    entries = []
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            entry = _loads(content)
            if entry is None:
                unread.append(f"line {line}: not JSON: {content.strip()[:40]!r}")
            else:
                entries.append((f"line {line}", entry))
    return assemble(str(path), "JSON lines", _objects(entries, unread), unread)


def _objects(entries: list[tuple[str, Any]], unread: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The entries that are objects, without their nested objects; others are named."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for place, entry in entries:
        if isinstance(entry, dict):
            rows.append((place, {k: v for k, v in entry.items() if not isinstance(v, (dict, bool))}))
        else:
            unread.append(f"{place}: not an object of names and numbers")
    return rows


def _trainer_state(path: Path, state: Mapping[str, Any]) -> tuple[RunLog, Intent]:
    """Hugging Face's trainer_state.json: log_history, and max_steps as the declared total."""
    history = state["log_history"] if isinstance(state["log_history"], list) else []
    unread: list[str] = []
    entries = [(f"log_history {k}", x) for k, x in enumerate(history)]
    kept = [(place, x) for place, x in entries if not (isinstance(x, dict) and SUMMARY in x)]
    notes = [f"{len(entries) - len(kept)} summary of the whole run is left out"] if len(kept) < len(entries) else []
    rows = _merged(_objects(kept, unread))
    total = str(state.get("max_steps", ""))
    declared = (
        Intent(total_steps=int(total), where={"total_steps": "max_steps of the file"}) if _positive(total) else Intent()
    )
    return assemble(str(path), "Hugging Face trainer state", rows, unread, notes), declared


def _positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _merged(rows: list[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Neighbouring entries of one step that share no other name, such as a loss and its evaluation, as one row."""
    merged: list[tuple[str, Mapping[str, Any]]] = []
    for place, row in rows:
        if merged and row.get("step") is not None and merged[-1][1].get("step") == row["step"]:
            before = merged[-1][1]
            if not (before.keys() & row.keys()) - {"step", "epoch"}:
                merged[-1] = (merged[-1][0], {**before, **row})
                continue
        merged.append((place, row))
    return merged


def _csv(path: Path, text: str, delimiter: str) -> RunLog:
    """The log in comma-, tab- or semicolon-separated values under a header; blank lines are passed over."""
    unread: list[str] = []
    rows: list[tuple[str, Mapping[str, Any]]] = []
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    names: list[str] = []
    try:
        for cells in reader:
            if not names:
                names = [c.strip() for c in cells if c.strip()] and [c.strip() for c in cells]
            elif cells and len(cells) != len(names):
                unread.append(f"line {reader.line_num}: {len(cells)} cells for {len(names)} columns")
            elif cells:
                rows.append((f"line {reader.line_num}", dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        unread.append(f"line {reader.line_num}: {error}")
    return assemble(str(path), "CSV", rows, unread)
