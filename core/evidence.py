"""How much is known of an obligation: an ordered scale on which only the two top grades are green."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict


class Grade(IntEnum):
    """From worst to best. UNKNOWN, UNAVAILABLE and ERROR are never green; VACUOUS is a defect of the claim."""

    REFUTED = 0
    VACUOUS = 1
    ERROR = 2
    UNAVAILABLE = 3
    UNKNOWN = 4
    TESTED = 5
    PROVED = 6


class Record(BaseModel):
    """A record that leaves the process: immutable, and nothing in it that was not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Counterexample(Record):
    """Values at which a claim fails, and whether the running function fails there too."""

    values: dict[str, str]
    reproduced: bool
    note: str = ""


class Evidence(Record):
    """What an engine found out about one obligation.

    `grade` is of the claim as written. `expected` says whether that is what the obligation wants: for an obligation
    that must fail (a known error, kept as a refutation) REFUTED with a reproduced counterexample is as expected.
    """

    obligation: str
    invariant: str
    claim: str
    kind: str
    engine: str
    grade: Grade
    must_fail: bool
    expected: bool
    detail: str = ""
    counterexample: Counterexample | None = None
    checks: dict[str, str] = {}
    assumes: tuple[str, ...] = ()
    about: dict[str, str] = {}
    seconds: float = 0.0
    rlimit: int | None = None
    reach: dict[str, tuple[int, ...]] = {}
    slow: bool = False
    cached: bool = False
    demanded: bool = True

    @property
    def missed(self) -> bool:
        """Whether it is not as expected, and that counts: a tool that is not installed is not green, and no failure."""
        return not self.expected and (self.demanded or self.grade is not Grade.UNAVAILABLE)

    @property
    def label(self) -> str:
        """PROVED, TESTED, `refuted as expected`, …"""
        if self.must_fail and self.expected:
            return "REFUTED, as it must be"
        return self.grade.name


class MutantState(StrEnum):
    """What became of a mutant. Only the first two are as they should be."""

    KILLED = "killed"
    EQUIVALENT = "equivalent"
    SURVIVED = "SURVIVED"


class MutantRecord(Record):
    """One mutant of a running function; `by` names the obligation that found it out, or how it was shown equivalent."""

    function: str
    where: str
    change: str
    state: MutantState
    by: str = ""
    invariants: tuple[str, ...] = ()
    cached: bool = False


class Score(Record):
    """The mutation score: every mutant that is not shown equivalent should be killed."""

    killed: int = 0
    equivalent: int = 0
    survived: int = 0

    @classmethod
    def of(cls, records: Iterable[MutantRecord]) -> Self:
        """The tally of some records."""
        states = [record.state for record in records]
        return cls(**{state.name.lower(): states.count(state) for state in MutantState})

    def __str__(self) -> str:
        counted = self.killed + self.survived
        share = f"{self.killed / counted:.0%}" if counted else "none to kill"
        text = f"{self.killed} of {counted} mutants killed ({share}), {self.equivalent} shown equivalent"
        return text + (f", {self.survived} SURVIVED" if self.survived else "")


def unjudged(evidence: Iterable[Evidence]) -> tuple[str, ...]:
    """The invariants of which no mutant is judged: with an obligation that is not as expected nothing refutes it."""
    return tuple(dict.fromkeys(e.invariant for e in evidence if e.missed))


def score_line(evidence: Iterable[Evidence], mutants: Iterable[MutantRecord]) -> str:
    """The mutation score, and first of all which invariants it is not of."""
    score, left_out = Score.of(mutants), unjudged(evidence)
    if not left_out:
        return str(score)
    why = f"not of {', '.join(left_out)}, of which an obligation is NOT as expected"
    judged = score.killed + score.equivalent + score.survived
    return f"{why}; of the others: {score}" if judged else f"none: {why}"


def exit_code(evidence: list[Evidence], mutants: Iterable[MutantRecord] = ()) -> int:
    """0: everything as expected. 1: refuted or vacuous, or a mutant survived. 2: something could not be judged."""
    missed = [e for e in evidence if e.missed]
    refuted = (e.grade in (Grade.REFUTED, Grade.VACUOUS) or (e.must_fail and e.grade >= Grade.TESTED) for e in missed)
    if any(refuted) or any(m.state is MutantState.SURVIVED for m in mutants):
        return 1
    return 2 if missed else 0
