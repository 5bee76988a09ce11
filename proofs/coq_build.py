"""Coq files compiled: in the order of what they require, in parallel, only what changed, each within a time limit.

Sources are copied to a build folder, so that nothing is written beside them. A file is compiled again when its text, a
file that it requires, or the version of Coq is another. That a file compiles says nothing of what it proves: an axiom, an
admitted theorem, a guard that is switched off all compile. What it proves is found out by coq_audit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from karat.core.report import write_text
from karat.invariants.coq_sources import FOLDER, closure, requires, source

BUILD = Path("build/coq")
TIME_LIMIT = 120.0
"""Seconds for one file."""
MEMORY_BYTES = 8 << 30
INSTALL = "apt-get install coq libcoq-flocq   (Debian, Ubuntu), or opam install coq coq-flocq"


@dataclass(frozen=True)
class Toolchain:
    """The compiler and its version."""

    command: tuple[str, ...]
    version: str


def toolchain() -> Toolchain | None:
    """Coq's or Rocq's compiler, or None when there is none."""
    for command in (("coqc",), ("rocq", "c")):
        if shutil.which(command[0]):
            told = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
            found = re.search(r"version (\S+)", told)
            if found:
                return Toolchain(command, found[1])
    return None


@dataclass(frozen=True)
class Compiled:
    """What became of one file: seconds, and why it failed (empty when it compiled)."""

    file: str
    seconds: float
    failure: str = ""
    kept: bool = False


def run_coq(tool: Toolchain, folder: Path, name: str) -> tuple[str, str, float]:
    """(output, why it failed or nothing, seconds) of the compiler on folder/name.v. What does not end is ended."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*tool.command, "-q", "-Q", ".", "Karat", f"{name}.v"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "", f"does not end within {TIME_LIMIT:.0f} s", time.perf_counter() - start
    taken = time.perf_counter() - start
    if process.returncode == 0:
        return output, "", taken
    return output, " ".join(errors.split()) or f"coqc ended with {process.returncode}", taken


def compile_all(
    files: Sequence[str], tool: Toolchain, jobs: int, folder: Path = FOLDER, build: Path = BUILD
) -> dict[str, Compiled]:
    """Every file and what it requires, compiled: file -> what became of it."""
    build.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(name for file in files for name in closure(file, folder)))
    keys = _keys(wanted, tool, folder)
    before = _record(build)
    futures: dict[str, Future[Compiled]] = {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for name in wanted:  # what a file requires comes before it, so no job waits for one that cannot start
            futures[name] = pool.submit(_compile, name, keys, before, dict(futures), tool, folder, build)
    done = {name: future.result() for name, future in futures.items()}
    kept = {name: {"key": keys[name], "seconds": one.seconds} for name, one in done.items() if not one.failure}
    write_text(build / "compiled.json", json.dumps(before | kept, indent=1) + "\n")
    return done


def _keys(names: Sequence[str], tool: Toolchain, folder: Path) -> dict[str, str]:
    """Name -> digest of the compiler, the text and the keys of what it requires."""
    keys: dict[str, str] = {}
    for name in names:
        try:
            text = source(name, folder)
        except OSError:
            text = ""
        parts = [tool.version, text, *(keys.get(other, "") for other in requires(text))]
        keys[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return keys


def _record(build: Path) -> dict[str, dict[str, object]]:
    try:
        record = json.loads((build / "compiled.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def _compile(
    name: str, keys: Mapping[str, str], before: Mapping[str, Mapping[str, object]], others: Mapping[str, Future[Compiled]],
    tool: Toolchain, folder: Path, build: Path,
) -> Compiled:  # fmt: skip
    try:
        text = source(name, folder)
    except OSError:
        return Compiled(name, 0.0, f"{name}.v is missing")
    failed = [other for other in requires(text) if other in others and others[other].result().failure]
    if failed:
        return Compiled(name, 0.0, f"requires {failed[0]}.v, which failed")
    known = before.get(name, {})
    if known.get("key") == keys[name] and (build / f"{name}.vo").is_file():
        return Compiled(name, float(str(known.get("seconds", 0.0))), kept=True)
    (build / f"{name}.vo").unlink(missing_ok=True)
    write_text(build / f"{name}.v", text)
    _, failure, seconds = run_coq(tool, build, name)
    return Compiled(name, round(seconds, 2), failure)
