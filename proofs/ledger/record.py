"""A claim, the function that decides it, and the verdict: computed when asked, from a comparison with the stated value.

A checker takes what the document states and returns a Finding. Nothing here types a verdict in: without a checker, or
with one that raises, a claim is UNDECIDED. `wrong` is another statement, on which the same checker must come to another
verdict: a checker that cannot fail decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

EXACT = "exact arithmetic"
INTERVAL = "interval arithmetic"
Z3 = "Z3"
FORMULA = "recomputation"
REPLAY = "replay of the log"
COUNT = "exhaustive count"
STATISTICS = "Student's t, closed form"
OPEN = "nothing here"


class Verdict(Enum):
    """VACUOUS: it holds, but could not fail: by definition, or because its bound can never bind."""

    TRUE = "TRUE"
    FALSE = "FALSE"
    VACUOUS = "VACUOUS"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Finding:
    """What a checker found: whether the statement holds, the computed value, a remark; vacuous when it cannot fail."""

    holds: bool
    computed: str
    note: str = ""
    vacuous: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.vacuous:
            return Verdict.VACUOUS
        return Verdict.TRUE if self.holds else Verdict.FALSE


Checker = Callable[[Any], Finding]


@dataclass(frozen=True)
class Claim:
    """One claim: what the document says, where, how it is decided; `stated` and `wrong` are handed to its checker.

    open: why nothing here decides the claim (then it has no checker); aside: a computed remark for such a claim.
    """

    id: str
    text: str
    where: str
    how: str
    stated: Any = None
    wrong: Any = None
    open: str = ""
    aside: Callable[[], str] | None = None


@dataclass(frozen=True)
class Entry:
    """A claim with its checker; None when the claim is declared open."""

    claim: Claim
    check: Checker | None


@dataclass(frozen=True)
class Document:
    """A source: the prefix of its ids, its title, what a reader must know of it, its entries."""

    prefix: str
    title: str
    about: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Ruling:
    """The verdict on a claim. amiss: a checker raised, or is missing where the claim is not declared open."""

    claim: Claim
    verdict: Verdict
    computed: str
    note: str
    amiss: bool = False


def decided(id: str, text: str, where: str, how: str, check: Checker, stated: Any, wrong: Any) -> Entry:
    """An entry that a checker decides."""
    return Entry(Claim(id, text, where, how, stated=stated, wrong=wrong), check)


def left_open(id: str, text: str, where: str, why: str, aside: Callable[[], str] | None = None) -> Entry:
    """An entry that nothing here decides, with the reason."""
    return Entry(Claim(id, text, where, OPEN, open=why, aside=aside), None)


def rule(claim: Claim, checkers: Mapping[str, Checker]) -> Ruling:
    """The verdict on a claim, from its checker among these; UNDECIDED with a reason when there is none or it raises."""
    try:
        if claim.open:
            return Ruling(claim, Verdict.UNDECIDED, claim.aside() if claim.aside else "", claim.open)
        if claim.id not in checkers:
            return Ruling(claim, Verdict.UNDECIDED, "", "no checker decides it", amiss=True)
        finding = checkers[claim.id](claim.stated)
    except Exception as error:
        return Ruling(claim, Verdict.UNDECIDED, "", f"the checker raised {type(error).__name__}: {error}", amiss=True)
    return Ruling(claim, finding.verdict, finding.computed, finding.note)
