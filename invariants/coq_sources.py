"""The Coq files behind theorems: where they are, what each requires, and a digest of all that a theorem rests on."""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from pathlib import Path

from karat.invariants import coq_constants

FOLDER = Path(__file__).parents[1] / "proofs" / "coq"
CONSTANTS = "Constants"
"""The file that is written from the code."""
_REQUIRED = re.compile(r"(?<![\w'.])From\s+Karat\s+Require\s+(?:(?:Import|Export)\s+)?([\w'\s]+)\.(?=\s|\Z)")


def source(file: str, folder: Path = FOLDER) -> str:
    """The text of a Coq file of the project; OSError when it is not there, or is no UTF-8 text."""
    try:
        return (folder / f"{file}.v").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OSError(f"no UTF-8 text: {error}") from error


@functools.cache
def without_comments(text: str) -> str:
    """A Coq text without comments (they nest) and without the contents of strings."""
    kept: list[str] = []
    depth = place = 0
    while place < len(text):
        two = text[place : place + 2]
        if two == "(*":
            depth, place = depth + 1, place + 2
        elif two == "*)" and depth:
            depth, place = depth - 1, place + 2
            kept.append(" ")
        elif text[place] == '"':
            end = text.find('"', place + 1)
            kept.append("\n" * text.count("\n", place, len(text) if end < 0 else end))
            place = len(text) if end < 0 else end + 1
            kept.append('""' if not depth else "")
        else:
            kept.append(text[place] if not depth or text[place] == "\n" else "")
            place += 1
    return "".join(kept)


def pinned_path(file: str, folder: Path = FOLDER) -> Path:
    """Where the statements of a file's theorems are pinned."""
    return folder / "expected" / f"{file}.toml"


def requires(text: str) -> tuple[str, ...]:
    """The project's files that a Coq text requires, by name. Other forms of the sentence are refused (coq_text)."""
    found = _REQUIRED.findall(without_comments(text))
    return tuple(dict.fromkeys(name for names in found for name in names.split()))


def closure(file: str, folder: Path = FOLDER) -> tuple[str, ...]:
    """A file and everything of the project that it requires, what is required first. A missing file is named, not read.

    A circle of requirements is left to Coq, which refuses it.
    """
    order: list[str] = []
    open_: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in open_:
            return
        open_.add(name)
        try:
            for other in requires(source(name, folder)):
                visit(other)
        except OSError:
            pass
        order.append(name)

    visit(file)
    return tuple(order)


def uses(constant: str, file: str, folder: Path = FOLDER) -> bool:
    """Whether a file names a constant of the code."""
    try:
        return constant in _words(source(file, folder))
    except OSError:
        return False


@functools.cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


def source_digest(file: str, folder: Path = FOLDER) -> str:
    """32 hex digits that change with the file, with what it requires, with the pinned statements, and with what the code
    has now for every constant that one of these files names."""
    total = hashlib.sha256()
    names = closure(file, folder)
    for path in (*(folder / f"{name}.v" for name in names), *(pinned_path(name, folder) for name in names)):
        text = path.read_bytes() if path.is_file() else b"missing"
        total.update(f"{path.name} {len(text)}\n".encode() + text)
    if CONSTANTS in names:
        for constant, (_, value) in coq_constants.constants().items():
            if any(uses(constant, name, folder) for name in names if name != CONSTANTS):
                total.update(f"{constant} = {coq_constants.term(value)}\n".encode())
    return total.hexdigest()[:32]


def pinned(file: str, folder: Path = FOLDER) -> dict[str, dict[str, str]]:
    """Name -> {"text", "complete"} of what is pinned of a file; nothing when there is no such record.

    ValueError for a record that cannot be read.
    """
    path = pinned_path(file, folder)
    if not path.is_file():
        return {}
    record = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, entry in record.items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("text", "complete")):
            raise ValueError(f"{name} has no text and digest")
    return {f"{file}.{name}": dict(entry) for name, entry in record.items()}
