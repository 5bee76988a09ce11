"""A folder of files appears whole or not at all, and replaces its predecessor at one instant.

It is written beside its place under a hidden name, flushed to the disk, then renamed. Hidden names are what a crash
leaves behind; `recover` settles them before the next write:

    .partial-NAME    being written, or being removed: worthless
    .replaced-NAME   an old one that stepped aside while a new one moves in: NAME again, unless there is another NAME

One writer per folder is assumed (a run owns its folder).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from karat.core.errors import StorageError
from karat.trainer.checkpoint.space import FULL, NoRoom
from karat.trainer.checkpoint.tensor_file import Pieces

PARTIAL = ".partial-"
REPLACED = ".replaced-"


def write_folder(
    target: Path, files: Mapping[str, Pieces], outgoing: Callable[[], Sequence[Path]] = lambda: ()
) -> None:
    """Writes `target` with these files, durably and atomically; an old `target` stays until the new one is complete.

    outgoing: asked when the new one is complete; the folders that it names step aside at the instant when the new one
    moves in, and are removed after it. StorageError where the system refuses (NoRoom: no space; no permission, no
    folder); then the old ones are in place and nothing of the new one is left.
    """
    parent = target.parent
    partial = parent / f"{PARTIAL}{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        recover(parent)
        partial.mkdir()
        for name, content in files.items():
            write_file(partial / name, content)
        sync_folder(partial)
        leaving = outgoing()
        _move_in(partial, target, leaving)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _storage_error(
            target, error, sum(len(piece) for content in files.values() for piece in content)
        ) from error
    except BaseException:  # an interrupt, too, leaves nothing half-written
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(_aside(target), ignore_errors=True)
    for path in leaving:
        _remove(path, _aside(path))


def write_file(path: Path, content: Pieces) -> None:
    """Writes a new file and flushes it to the disk."""
    with path.open("xb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flushes a folder's list of names to the disk, where the system can open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recover(parent: Path) -> None:
    """Settles what a crash left: a replaced folder without successor gets its name back, the rest is removed."""
    for left in sorted(parent.glob(f"{REPLACED}*")):
        name = left.name.removeprefix(REPLACED)
        if (parent / name).exists():
            shutil.rmtree(left)
        else:
            left.rename(parent / name)
    for left in parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(left)


def _remove(path: Path, aside: Path) -> None:
    """Removes what stepped aside, so that a crash midway leaves no damaged folder under its name."""
    partial = path.parent / f"{PARTIAL}{path.name}"
    try:
        aside.rename(partial)
        shutil.rmtree(partial)
    except OSError as error:
        seen = f"the old checkpoint {path} cannot be removed: {error.strerror or error}"
        raise StorageError(seen, required="a folder that can be written") from error


def _aside(path: Path) -> Path:
    return path.parent / f"{REPLACED}{path.name}"


def _move_in(partial: Path, target: Path, leaving: Sequence[Path]) -> None:
    """Renames partial to target, durably; those that leave step aside first, and come back if anything fails."""
    gone: list[Path] = []
    arrived = False
    try:
        for path in [*([target] if target.exists() else []), *leaving]:
            path.rename(_aside(path))
            gone.append(path)
        partial.rename(target)
        arrived = True
        sync_folder(target.parent)
    except BaseException:
        if arrived:
            target.rename(partial)
        for path in gone:
            _aside(path).rename(path)
        raise


def _storage_error(target: Path, error: OSError, size: int) -> StorageError:
    seen = f"{target} was not written: {error.strerror or error}; what was there before is untouched"
    if error.errno in FULL:
        return NoRoom(seen, target, needed=size, free=None)
    return StorageError(
        seen,
        required=f"{size:,} bytes in a folder that can be written",
        next_step="free some space or mend the folder, then: trainer resume RUN",
    )
