"""The Coq files behind theorems: where they are, what each requires, and a digest of all that a theorem rests on."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "proofs" / "coq"
_REQUIRED = re.compile(r"\bFrom\s+Karat\s+Require\s+(?:Import\s+|Export\s+)?([\w\s]+)\.")


def source(file: str, folder: Path = FOLDER) -> str:
    """The text of a Coq file of the project; OSError when it is not there."""
    return (folder / f"{file}.v").read_text(encoding="utf-8")


def pinned_path(file: str, folder: Path = FOLDER) -> Path:
    """Where the statements of a file's theorems are pinned."""
    return folder / "expected" / f"{file}.toml"


def requires(text: str) -> tuple[str, ...]:
    """The project's files that a Coq text requires, by name."""
    return tuple(dict.fromkeys(name for found in _REQUIRED.findall(text) for name in found.split()))


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


def source_digest(file: str, folder: Path = FOLDER) -> str:
    """32 hex digits that change with the file, with what it requires, and with the pinned statements."""
    total = hashlib.sha256()
    names = closure(file, folder)
    for path in (*(folder / f"{name}.v" for name in names), *(pinned_path(name, folder) for name in names)):
        text = path.read_bytes() if path.is_file() else b"missing"
        total.update(f"{path.name} {len(text)}\n".encode() + text)
    return total.hexdigest()[:32]


def pinned(file: str, folder: Path = FOLDER) -> dict[str, dict[str, str]]:
    """Name -> {"text", "complete"} of what is pinned of a file; nothing when there is no such record.

    ValueError (tomllib's) for a record that cannot be read.
    """
    path = pinned_path(file, folder)
    if not path.is_file():
        return {}
    record = tomllib.loads(path.read_text(encoding="utf-8"))
    return {f"{file}.{name}": dict(entry) for name, entry in record.items() if isinstance(entry, dict)}
