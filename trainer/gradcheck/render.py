"""A gradient check for people and for machines: a table, the tensors that failed or were not tested, a verdict; JSON."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from karat.trainer.gradcheck.check import CANNOT_JUDGE, FAILED, HELD, Checked, GradCheck
from karat.trainer.gradcheck.compare import (
    DIFFERENCES,
    LIMITS,
    OPINIONS,
    OWN,
    REFERENCE,
    TORCH,
    Comparison,
    Result,
    Row,
)
from karat.trainer.gradcheck.differences import DIRECTIONS, ELEMENTWISE, STEP, WIDE_STEP

SCHEMA = 1
VERDICTS = {HELD: "HOLDS", FAILED: "VIOLATED", CANNOT_JUDGE: "CANNOT JUDGE"}
STYLES = {Result.HELD: "green", Result.FAILED: "bold red", Result.NOT_TESTED: "yellow"}
TITLES = {OWN: "the trainer's module", TORCH: "plain torch", DIFFERENCES: "differences", REFERENCE: "the reference"}
MOST_SHOWN = 12
"""Failed tensors that are written out under the table; all of them are in --json."""


def verdict_line(check: GradCheck) -> str:
    """The verdict as one line, with the parts at fault."""
    rows = [row for part in check.parts for row in part.rows]
    told = VERDICTS[check.exit_code]
    if check.exit_code == FAILED:
        return f"{told}: at fault: {', '.join(check.at_fault)}"
    if check.exit_code == CANNOT_JUDGE:
        open_ = sum(row.result is Result.NOT_TESTED for row in rows)
        return f"{told}: {open_} of {len(rows)} tensors not tested; none of the others failed"
    return f"{told}: {len(rows)} tensors of {len(check.parts)} parts"


def table(check: GradCheck) -> Table:
    """One row a part, with its largest errors."""
    shown = Table(title=f"relative errors of outputs and gradients, seed {check.seed}, sequence length {check.length}")
    shown.add_column("part", no_wrap=True)
    shown.add_column("tensors", justify="right")
    for opinion in OPINIONS:
        shown.add_column(f"{TITLES[opinion]}\n<= {LIMITS[opinion]:g}", justify="right", no_wrap=True)
    shown.add_column("result", no_wrap=True)
    shown.add_column("the trainer's module is")
    for part in check.parts:
        errors = [_worst(part, opinion) for opinion in OPINIONS]
        result = Text(part.result, style=STYLES[part.result])
        shown.add_row(part.part, str(len(part.rows)), *errors, result, part.place or "none")
    return shown


def lines(check: GradCheck) -> list[Text]:
    """What stands under the table: what failed, what only follows from it, what was not tested, the verdict."""
    style = {HELD: "bold green", FAILED: "bold red", CANNOT_JUDGE: "bold yellow"}[check.exit_code]
    said = [Text(line) for line in (*failures(check), *follows(check), *not_tested(check))]
    return [*said, Text(verdict_line(check), style=style)]


def follows(check: GradCheck) -> list[str]:
    """The parts that failed and are made of one that did."""
    others = [p.part for p in check.parts if p.result is Result.FAILED and p.part not in check.at_fault]
    return [f"made of what failed: {', '.join(others)}"] if others else []


def failures(check: GradCheck) -> list[str]:
    """A line for each failed tensor, those of the parts at fault first."""
    failed = [part for part in check.parts if part.result is Result.FAILED]
    failed.sort(key=lambda part: part.part not in check.at_fault)
    lines = [_failure(part, row) for part in failed for row in part.rows if row.result is Result.FAILED]
    more = [f"{len(lines) - MOST_SHOWN} more tensors failed, all in --json"] if len(lines) > MOST_SHOWN else []
    return lines[:MOST_SHOWN] + more


def not_tested(check: GradCheck) -> list[str]:
    """A line for each part and reason, with the tensors."""
    lines = []
    for part in check.parts:
        reasons: dict[str, list[str]] = {}
        for row in part.rows:
            said = {c.reason for c in row.comparisons if c.result is Result.NOT_TESTED}
            for reason in sorted(said):
                reasons.setdefault(reason, []).append(row.tensor)
        lines += [f"not tested: {part.part}: {', '.join(tensors)}: {reason}" for reason, tensors in reasons.items()]
    if check.length == 1 and lines:
        lines.append(
            "  one token: a softmax over one score is 1, so that q, k, the gain and the position have no effect"
        )
        lines.append("  next      trainer gradcheck --length 5")
    return lines


def _failure(part: Checked, row: Row) -> str:
    errors = ", ".join(_told(c) for c in row.comparisons)
    return f"FAILED {part.part}: {row.tensor}: {errors}: {part.suspect(row)}"


def _told(comparison: Comparison) -> str:
    if comparison.result is Result.NOT_TESTED:
        return f"{TITLES[comparison.opinion]} not tested"
    if comparison.error is None:
        return f"{TITLES[comparison.opinion]}: {comparison.reason}"
    sign = ">" if comparison.result is Result.FAILED else "<="
    return f"{TITLES[comparison.opinion]} {_number(comparison.error)} {sign} {_number(comparison.limit)}"


def _worst(part: Checked, opinion: str) -> str:
    """The largest error, with its limit where that is not the column's."""
    limits = {c.limit for row in part.rows for c in row.comparisons if c.opinion == opinion and c.limit is not None}
    other = "".join(f" <= {_number(limit)}" for limit in limits if limit != LIMITS[opinion])
    return f"{_number(part.worst(opinion))}{other}"


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def as_json(check: GradCheck) -> dict[str, Any]:
    """Everything, as JSON data; a number that JSON has no form for is text."""
    return {
        "schema": SCHEMA,
        "kind": "karat gradient check",
        "verdict": VERDICTS[check.exit_code],
        "exit_code": check.exit_code,
        "seed": check.seed,
        "length": check.length,
        "differences": {
            "step": STEP,
            "five-point step": WIDE_STEP,
            "element by element up to": ELEMENTWISE,
            "directions beyond": DIRECTIONS,
        },
        "at_fault": list(check.at_fault),
        "parts": [
            {
                "part": part.part,
                "result": part.result.value,
                "trainers_module": part.place or None,
                "made_of": list(part.contains),
                "tensors": [_row(part, row) for row in part.rows],
            }
            for part in check.parts
        ],
    }


def _row(part: Checked, row: Row) -> dict[str, Any]:
    return {
        "tensor": row.tensor,
        "norm": _plain(row.norm),
        "result": row.result.value,
        "comparisons": [
            {
                "with": c.opinion,
                "result": c.result.value,
                "error": _plain(c.error),
                "limit": c.limit,
                "reason": c.reason,
            }
            for c in row.comparisons
        ],
        **({"suspect": part.suspect(row)} if row.result is Result.FAILED else {}),
    }


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value
