"""The records that leave the process: the verification report, the proof lock, the run report. Canonical JSON, digest.

A report's digest is the SHA-256 of its canonical JSON without the digest itself, so that anyone can re-check it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from karat.core.errors import EvidenceError, StorageError
from karat.core.evidence import Evidence, Grade, MutantRecord, Record, Score
from karat.core.provenance import digest

SCHEMA = 1


class FileReach(Record):
    """Of one file of formulas: how many lines can run, how many some proof ran, and which ones none did."""

    file: str
    lines: int
    proved: int
    tested_only: tuple[int, ...] = ()
    none: tuple[int, ...] = ()


class VerificationReport(Record):
    """What one `make verify` found out."""

    schema_version: int = SCHEMA
    kind: str = "karat verification report"
    created: str
    revision: str
    environment: dict[str, str]
    evidence: tuple[Evidence, ...]
    mutants: tuple[MutantRecord, ...] = ()
    reach: tuple[FileReach, ...] = ()
    exit_code: int
    seconds: float


class Proof(Record):
    """One obligation as it was last shown: grade and the fingerprints of the functions that it is about."""

    claim: str
    engine: str
    grade: str
    about: dict[str, str]
    assumes: tuple[str, ...] = ()
    detail: str = ""
    hypotheses: str = ""
    slow: bool = False


class ProofLock(Record):
    """What has been proved, of which code: invariant id -> obligation id -> proof; and invariant id -> the fingerprints
    of what its guard runs. No times: equal runs, equal files."""

    schema_version: int = SCHEMA
    solver: dict[str, str]
    proofs: dict[str, dict[str, Proof]]
    guards: dict[str, dict[str, str]]
    mutants: dict[str, Score] = Field(default_factory=dict)


class ProofStatus(Record):
    """What the lock says of one invariant now. `stale` names functions that changed since they were proved;
    `fingerprint` is of all that the invariant's obligations rest on, as it is now."""

    invariant: str
    grade: str
    engines: tuple[str, ...]
    shown: int
    tested: int
    refuted_as_expected: int
    fingerprint: str
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def current(self) -> bool:
        """Whether every obligation of the invariant was shown of the code as it is now."""
        return not self.stale and not self.missing and self.grade != "UNPROVED"


class GuardSummary(Record):
    """What one guard did in a run."""

    invariant: str
    slug: str
    state: str
    checks: int
    violations: int
    worst_margin: float | None = None
    worst_step: int | None = None
    unit: str = ""
    required: str = ""
    note: str = ""


class Violation(Record):
    """One violation, as in the ledger and in the message.

    severity: FAIL where the invariant or a declaration decides, WARN where a heuristic does. where: parameter or module.
    """

    invariant: str
    slug: str
    step: int
    phase: str
    policy: str
    observed: str
    required: str
    margin: float | None
    previous_margin: float | None
    unit: str
    probe: str
    evidence: str
    reason: str = ""
    severity: str = "FAIL"
    where: str = ""

    @property
    def id(self) -> str:
        """The id of what is violated: INV-8, RUN-11."""
        return self.invariant

    @property
    def message(self) -> str:
        """What was seen, as one sentence; why it is suppressed or not a number behind it."""
        return self.observed if not self.reason else f"{self.observed} ({self.reason})"


class RunReport(Record):
    """What one training run did, under which guards, and what is proved of them.

    weights: the SHA-256 of the final weights. averaged_bpb: the validation loss of their exponential moving average.
    loss_unit: of all losses; bits per token where tokens stand for no bytes.
    """

    schema_version: int = SCHEMA
    kind: str = "karat run report"
    created: str
    outcome: str
    exit_code: int
    policy: str
    steps_done: int
    steps_planned: int
    bpb: float | None
    baseline_bpb: float | None
    first_loss: float | None
    validation: str
    proofs: tuple[ProofStatus, ...]
    guards: tuple[GuardSummary, ...]
    violations: tuple[Violation, ...]
    rungs: tuple[dict[str, Any], ...]
    certificate: str
    notes: tuple[str, ...]
    data: dict[str, Any]
    model: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, str]
    revision: str
    timing: dict[str, float]
    weights: str = ""
    averaged_bpb: float | None = None
    evaluations: tuple[dict[str, Any], ...] = ()
    """Every validation loss of the run: step, bits per byte, seconds since it began."""
    loss_unit: str = "bits per byte"


def with_digest(report: Record) -> dict[str, Any]:
    """The report as JSON data, with its own digest added."""
    data = report.model_dump(mode="json")
    return {**data, "digest": digest(data)}


def digest_holds(data: dict[str, Any]) -> bool:
    """Whether a report read back carries the digest of its content."""
    return digest({key: value for key, value in data.items() if key != "digest"}) == data.get("digest")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed. StorageError when it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}",
        required="a folder that can be written, with space left",
        next_step="free some space, or choose another folder with --out",
    )


def write_report(path: Path, report: Record) -> str:
    """Writes a report with its digest as indented JSON; returns the digest."""
    data = with_digest(report)
    write_text(path, _indented(data))
    return str(data["digest"])


def _indented(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_lock(path: Path) -> ProofLock | None:
    """The proof lock, None when there is none; EvidenceError when it cannot be read as one."""
    if not path.is_file():
        return None
    try:
        return ProofLock.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"{path} is not a proof lock: {_why(error)}",
            required="the file as `make verify` wrote it",
            next_step="make verify, or python -m karat.proofs.verify   (writes it anew; the slow tier with --slow)",
        ) from error


def _why(error: OSError | ValueError) -> str:
    """What is wrong with a file, and where: the place in the JSON, or the field and how many others are wrong too."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is 0x{error.object[error.start]:02x}, which is not UTF-8 text"
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    problems = error.errors(include_url=False, include_input=False)
    field = " > ".join(str(part) for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{f'{field}: ' if field else ''}{problems[0]['msg']}{more}"


GREEN = (Grade.PROVED.name, Grade.TESTED.name)
