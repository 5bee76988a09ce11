"""Text is found in a file, a folder or Python's own library, and only text: UTF-8 without NUL bytes.

Every function reads whole files and returns them with paths relative to the source; each thing that cannot be
read is one DataError that says what was seen there.
"""

import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from karat.core.errors import DataError
from karat.trainer.data.manifest import sha256_hex
from karat.trainer.data.split import TextFile

# Not the library's own source, or stripped by some distributions: the text is the same without them.
STDLIB_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})
# Written when this Python was built or installed: paths and settings of one machine.
STDLIB_MACHINE_FILES = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")
STDLIB_LEAST_BYTES = 2_000_000  # CPython 3.11 has 11 MB


@dataclass(frozen=True)
class Texts:
    """The files of one source; `skipped` others were empty, not text, or identical to an earlier one."""

    files: tuple[TextFile, ...]
    skipped: int


def read_text(path: Path) -> bytes:
    """The bytes of one text file; DataError where it is missing, unreadable, empty or not UTF-8 text."""
    content = _read(path)
    fault = text_fault(content)
    if fault:
        seen = f"{path}: {fault}"
        raise DataError(seen, required="UTF-8 text without NUL bytes", next_step="give a text file or a folder of them")
    return content


def read_texts(path: Path) -> Texts:
    """The text of a path: one file, or all text files below a folder in the order of their POSIX paths.

    In a folder, hidden files and folders are passed over, and files that are not text are skipped. DataError
    for a missing path, something that is neither file nor folder, an unreadable file, and a folder without
    text.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        if not (is_folder or is_file or path.exists()):
            raise DataError(
                f"no file or folder at {path}",
                required="a text file, a folder of text files, or a named corpus: stdlib, tiny_shakespeare, synthetic",
                next_step=f"check the spelling; the current folder is {Path.cwd()}",
            )
    except OSError as error:
        raise _unreadable(path, error) from error
    if is_file:
        return Texts((TextFile(printable(path.name), read_text(path)),), 0)
    if not is_folder:
        raise DataError(f"{path} is neither a file nor a folder", required="a text file or a folder of text files")
    found = _walk(path, lambda folder: folder.startswith("."), lambda name: not name.startswith("."))
    if not found.files:
        raise DataError(
            f"no text below {path}: {found.skipped} files, all empty or not text",
            required="at least one UTF-8 text file",
            next_step="give a folder that holds text files",
        )
    return found


def read_stdlib(root: Path | None = None) -> Texts:
    """The source of the running Python's standard library, without its tests and installed packages.

    root: another library folder, for tests. DataError where there is less than 2 MB, as on a stripped-down
    Python.
    """
    library = root or Path(sysconfig.get_path("stdlib"))
    found = _walk(
        library,
        lambda folder: folder in STDLIB_LEFT_OUT or folder.startswith((".", "config-")),
        lambda name: name.endswith(".py") and not name.startswith((".", *STDLIB_MACHINE_FILES)),
    )
    total = sum(len(file.content) for file in found.files)
    if total < STDLIB_LEAST_BYTES:
        raise DataError(
            f"only {total:,} bytes of standard library source in {library}: this Python lacks most of it",
            required=f"at least {STDLIB_LEAST_BYTES:,} bytes of *.py",
            next_step="use a Python with its full library (python.org, pyenv, uv), or give your own text",
        )
    return found


def text_fault(content: bytes) -> str:
    """What keeps the bytes from being text, in words; empty where nothing does."""
    if not content:
        return "the file is empty"
    if b"\0" in content:
        return f"not text: a NUL byte at offset {content.index(0):,}"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start:,} ({error.reason})"
    return ""


def printable(path: str) -> str:
    """The path as Unicode text: bytes of a file name that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(root: Path, leaves_out: Callable[[str], bool], takes: Callable[[str], bool]) -> Texts:
    """The text files below root whose name `takes` accepts, outside the folders that `leaves_out` names."""

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or root), error) from error

    paths: list[Path] = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not leaves_out(name)]
        paths += [Path(folder, name) for name in names if takes(name)]
    files: list[TextFile] = []
    known: set[str] = set()
    regular = [path for path in paths if path.is_file()]
    for path in sorted(regular, key=lambda p: p.relative_to(root).as_posix()):
        content = _read(path)
        digest = sha256_hex(content)
        if digest not in known and not text_fault(content):
            files.append(TextFile(printable(path.relative_to(root).as_posix()), content))
        known.add(digest)
    return Texts(tuple(files), len(regular) - len(files))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    seen = f"cannot read {path}: {error.strerror or error}"
    return DataError(seen, required="a readable file or folder", next_step="check the path and its permissions")
