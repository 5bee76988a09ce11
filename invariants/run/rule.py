"""The record of one rule of the RUN family: what must hold of any training run, and how a reader is told.

A rule judges one number against its limit by one of the comparisons of core/formulas/limits.py, which are what is proved
(LIMIT-1); what reads the number off a live run, a batch or a log is a check in `invariants/runtime/` or `invariants/run/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from karat.core.formulas import limits
from karat.core.ops import FLOAT
from karat.core.verdict import accepts


class Severity(StrEnum):
    """FAIL: mathematics or the declaration decides. WARN: a heuristic. INFO: worth knowing, never an alarm."""

    FAIL = "FAIL"
    WARN = "WARN"
    INFO = "INFO"


class Form(StrEnum):
    """How the number is compared with its limit."""

    AT_MOST = "at most"
    AT_LEAST = "at least"
    WITHIN = "within"
    AGREES = "agrees with"


@dataclass(frozen=True)
class Witness:
    """A number and its limit, whose side is known, and why it is interesting."""

    value: float
    bounds: tuple[float, ...]
    why: str


@dataclass(frozen=True)
class Rule:
    """One rule. `severity` is the worst that it says; a check may say less where it only guesses.

    quantity: what the number is; unit: of it and of the margin. seen_by: of watch, preflight, audit and the functions, those
    that check it; when: at which steps. source: the public report of such a bug, a link. example, mended: the smallest
    code with the bug, and without. declare: what to write in the Spec, and how to suppress. holds, violates: witnesses.
    """

    id: str
    slug: str
    severity: Severity
    statement: str
    why: str
    quantity: str
    unit: str
    form: Form
    seen_by: tuple[str, ...]
    when: str
    limits: tuple[str, ...]
    source: str
    example: str
    mended: str
    declare: str
    holds: tuple[Witness, ...]
    violates: tuple[Witness, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"RUN-[1-9][0-9]*", self.id):
            raise ValueError(f"a rule's id reads RUN-<number>, got {self.id!r}")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"a rule's slug is lower-case words joined by hyphens, got {self.slug!r}")

    def margin(self, value: float, *bounds: float) -> float:
        """The signed distance to the limit, in the rule's unit; not finite for what is no number."""
        if self.form is Form.AT_MOST:
            return float(limits.at_most(value, bounds[0]))
        if self.form is Form.AT_LEAST:
            return float(limits.at_least(value, bounds[0]))
        if self.form is Form.WITHIN:
            low, high = bounds
            return float(limits.within(value, low, high, FLOAT))
        declared, tolerance = bounds
        return float(limits.agrees(value, declared, tolerance, FLOAT))

    def holds_for(self, value: float, *bounds: float) -> bool:
        """Whether the number is within its limit; NaN and infinities are not."""
        return accepts(self.margin(value, *bounds))
