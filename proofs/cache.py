"""Results kept by the content of everything that they rest on, so that an unchanged catalogue verifies in seconds.

The key of a result is a digest of the fingerprints of the obligation, of the file that states it, of the engines, of
core, and of the versions of Python and the solvers. A result that is not as expected is never kept. A kept result is
marked as such; `--no-cache` proves anew.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from karat import core, proofs
from karat.core.errors import StorageError
from karat.core.evidence import Evidence, MutantRecord, MutantState
from karat.core.obligation import Obligation, Theorem
from karat.core.provenance import digest, environment, fingerprint
from karat.core.report import write_text
from karat.invariants.standing import fingerprints
from karat.proofs.coq_build import toolchain
from karat.proofs.mutation import Trial

TOOLS = ("z3-solver", "sympy", "hypothesis", "numpy", "scipy")


@functools.cache
def _machinery() -> str:
    """A digest of what decides: the engines, core (not the formulas, which have fingerprints), and the tools."""
    folders = [Path(str(inspect.getsourcefile(package))).parent for package in (core, proofs)]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.parent.name != "formulas"]
    sources = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return digest([sources, environment(TOOLS), sys.version])


def key_of(obligation: Obligation) -> str:
    """The content that the obligation's evidence depends on, as a digest."""
    if isinstance(obligation, Theorem):  # its file and what is pinned are among the fingerprints
        samples = [fingerprint(one.sample) for one in obligation.counterparts]
        return digest([obligation.id, fingerprints(obligation), samples, coq_version(), _machinery()])
    stated = Path(str(inspect.getsourcefile(_statement(obligation))))
    return digest([obligation.id, fingerprints(obligation), _file(stated), _machinery()])


@functools.cache
def coq_version() -> str:
    """The version of Coq, or that there is none."""
    tool = toolchain()
    return tool.version if tool else "none"


def _statement(obligation: Obligation) -> Any:
    """A function that stands in the file where the obligation is stated."""
    return next(f for name in ("show", "check", "check_block", "holds") if (f := getattr(obligation, name, None)))


@functools.cache
def _file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key_of_trial(trial: Trial, keys: dict[str, str]) -> str:
    """The same for the mutants of a trial: their module's file and the keys of the obligations that read it."""
    source = Path(str(sys.modules[trial.module].__file__))
    wanted = sorted({id_ for against in trial.mutants for id_ in (*against.quick, *against.dear)})
    return digest([trial.module, sorted(trial.functions), [against.place for against in trial.mutants], _file(source),
                   [keys[id_] for id_ in wanted], _machinery()])  # fmt: skip


class Cache:
    """Results in a folder, one file each; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def evidence(self, key: str) -> Evidence | None:
        """The kept evidence, or None."""
        data = self._read(key)
        return None if data is None else Evidence.model_validate(data).model_copy(update={"cached": True})

    def mutants(self, key: str) -> list[MutantRecord] | None:
        """The kept records of a trial, or None."""
        data = self._read(key)
        return None if data is None else [MutantRecord.model_validate(row | {"cached": True}) for row in data]

    def keep_evidence(self, key: str, evidence: Evidence) -> None:
        """Keeps evidence that is as expected."""
        if evidence.expected:
            self._write(key, evidence.model_dump(mode="json"))

    def keep_mutants(self, key: str, records: Sequence[MutantRecord]) -> None:
        """Keeps the records of a trial in which none survived."""
        if all(record.state is not MutantState.SURVIVED for record in records):
            self._write(key, [record.model_dump(mode="json") for record in records])

    def forget_all_but(self, keys: Iterable[str]) -> None:
        """Removes the results that the present catalogue has no use for."""
        if self.folder is None or not self.folder.is_dir():
            return
        wanted = {f"{key}.json" for key in keys}
        for path in self.folder.glob("*.json"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _read(self, key: str) -> Any:
        if self.folder is None:
            return None
        try:
            held = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            return held["result"] if held["digest"] == digest(held["result"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or damaged: it is proved anew

    def _write(self, key: str, result: Any) -> None:
        if self.folder is None:
            return
        try:
            write_text(self.folder / f"{key}.json", json.dumps({"digest": digest(result), "result": result}))
        except (OSError, StorageError):
            self.folder = None  # a folder that cannot be written keeps nothing
