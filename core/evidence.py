"""How much is known of an obligation: an ordered scale on which only the two top grades are green."""

from __future__ import annotations

from enum import IntEnum

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

    @property
    def label(self) -> str:
        """PROVED, TESTED, `refuted as expected`, …"""
        if self.must_fail and self.expected:
            return "REFUTED, as it must be"
        return self.grade.name


def exit_code(evidence: list[Evidence]) -> int:
    """0: everything as expected. 1: something is refuted or vacuous. 2: something could not be judged."""
    missed = [e for e in evidence if not e.expected]
    if any(e.grade in (Grade.REFUTED, Grade.VACUOUS) or (e.must_fail and e.grade >= Grade.TESTED) for e in missed):
        return 1
    return 2 if missed else 0
