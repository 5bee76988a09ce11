"""Coq files compiled: in the order of what they require, in parallel, only what changed, each within limits.

Sources are copied to a build folder, so that nothing is written beside them. A file is compiled again when its text, a
file that it requires, the version of Coq, or the compiled file itself is another than what was recorded when it was
compiled. That a file compiles says nothing of what it proves: an axiom, an admitted theorem, a guard that is switched off
all compile. What it proves is found out by coq_audit.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from karat.core.report import write_text
from karat.invariants.coq_sources import FOLDER, closure, requires, source

BUILD = Path("build/coq")
TIME_LIMIT = 120.0
"""Seconds for one file."""
MEMORY_BYTES = 8 << 30
OUTPUT_BYTES = 256 << 20
"""The most that the compiler may print, or write to one file."""
INSTALL = "apt-get install coq libcoq-flocq   (Debian, Ubuntu), or opam install coq coq-flocq"
_FLOCQ = re.compile(r"logical path (?:[^.]*\.)*Flocq|Cannot find.{0,80}Flocq")


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

    @property
    def without_library(self) -> bool:
        """Whether it failed for want of a library that is not installed."""
        return _FLOCQ.search(self.failure) is not None


@contextmanager
def alone(build: Path) -> Iterator[None]:
    """Waits until no other process compiles in the folder."""
    build.mkdir(parents=True, exist_ok=True)
    with open(build / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _limits() -> Callable[[], None]:
    """What a compiler process sets before it starts: its memory, its output, and that it ends when this process does."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def set_them() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
        if library is not None:
            library.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return set_them


def run_coq(tool: Toolchain, folder: Path, name: str) -> tuple[str, str, float]:
    """(output, why it failed or nothing, seconds) of the compiler on folder/name.v. What does not end is ended."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*tool.command, "-q", "-Q", ".", "Karat", f"{name}.v"],
            cwd=folder, stdout=output, stderr=errors, start_new_session=True, preexec_fn=_limits(),
        )  # fmt: skip
        try:
            process.wait(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            return "", f"does not end within {TIME_LIMIT:.0f} s", time.perf_counter() - start
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        told = errors.read(4000).decode(errors="replace")
        if process.returncode == 0:
            return output.read().decode(errors="replace"), "", seconds
    why = " ".join(told.split()) or f"the compiler ended with {process.returncode}"
    return "", f"prints more than {OUTPUT_BYTES >> 20} MB" if process.returncode == -signal.SIGXFSZ else why, seconds


def compile_all(
    files: Sequence[str], tool: Toolchain, jobs: int, folder: Path = FOLDER, build: Path = BUILD
) -> dict[str, Compiled]:
    """Every file and what it requires, compiled: file -> what became of it."""
    build.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(name for file in files for name in closure(file, folder)))
    keys = _keys(wanted, tool, folder)
    futures: dict[str, Future[Compiled]] = {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for name in wanted:  # what a file requires comes before it, so no job waits for one that cannot start
            futures[name] = pool.submit(_compile, name, keys[name], dict(futures), tool, folder, build)
    return {name: future.result() for name, future in futures.items()}


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


def _compile(
    name: str, key: str, others: Mapping[str, Future[Compiled]], tool: Toolchain, folder: Path, build: Path
) -> Compiled:
    try:
        text = source(name, folder)
    except FileNotFoundError:
        return Compiled(name, 0.0, f"{name}.v is missing")
    except OSError as error:
        return Compiled(name, 0.0, f"{name}.v cannot be read: {error}")
    for other in requires(text):
        if other in others and (one := others[other].result()).failure:
            library = f" ({one.failure})" if one.without_library else ""
            return Compiled(name, 0.0, f"requires {other}.v, which failed{library}")
    record, result = build / f"{name}.json", build / f"{name}.vo"
    known = _record(record)
    try:
        if known is not None and known[0] == key and known[1] == _digest(result):
            return Compiled(name, known[2], kept=True)
        record.unlink(missing_ok=True)  # from here on nothing says that a result is of some text
        result.unlink(missing_ok=True)
        write_text(build / f"{name}.v", text)
        _, failure, seconds = run_coq(tool, build, name)
        if not failure:
            held = {"key": key, "vo": _digest(result), "seconds": round(seconds, 2)}
            write_text(record, json.dumps(held) + "\n")
        return Compiled(name, round(seconds, 2), failure)
    except OSError as error:
        return Compiled(name, 0.0, f"{build}: {error}")


def _record(path: Path) -> tuple[str, str, float] | None:
    """(key, digest of the result, seconds) as recorded when a file was compiled, or None."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return str(held["key"]), str(held["vo"]), float(held["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path) -> str:
    """The SHA-256 of a file; nothing for none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
