"""A folder of files appears whole or not at all, and replaces its predecessor at one instant.

It is written beside its place under a hidden name, flushed to the disk, then renamed. Hidden names are what a crash
leaves behind; `recover` settles them before the next write:

    .partial-NAME    being written, or being removed: worthless
    .replaced-NAME   the old NAME while the new one moves in: NAME again if the new one never arrived

One writer per folder is assumed (a run owns its folder).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from karat.core.errors import StorageError

PARTIAL = ".partial-"
REPLACED = ".replaced-"


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Writes `target` with these files, durably and atomically; an old `target` stays until the new one is complete.

    StorageError where the system refuses (no space, no permission, no folder); then the old one is in place and
    nothing of the new one is left.
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
        _move_in(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _storage_error(target, error, sum(map(len, files.values()))) from error
    except BaseException:  # an interrupt, too, leaves nothing half-written
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(parent / f"{REPLACED}{target.name}", ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a new file and flushes it to the disk."""
    with path.open("xb") as file:
        file.write(content)
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


def remove_folder(path: Path) -> None:
    """Removes a folder so that a crash midway leaves no damaged folder under its name. StorageError if it cannot."""
    partial = path.parent / f"{PARTIAL}{path.name}"
    try:
        path.rename(partial)
        shutil.rmtree(partial)
    except OSError as error:
        seen = f"the old checkpoint {path} cannot be removed: {error.strerror or error}"
        raise StorageError(seen, required="a folder that can be written") from error


def _move_in(partial: Path, target: Path) -> None:
    """Renames partial to target, durably; one that is there already steps aside, and comes back if that fails."""
    aside = target.parent / f"{REPLACED}{target.name}"
    replaces = target.exists()
    if replaces:
        target.rename(aside)
    try:
        partial.rename(target)
        sync_folder(target.parent)
    except BaseException:
        if target.exists():
            target.rename(partial)
        if replaces:
            aside.rename(target)
        raise


def _storage_error(target: Path, error: OSError, size: int) -> StorageError:
    return StorageError(
        f"{target} was not written: {error.strerror or error}; what was there before is untouched",
        required=f"{size:,} bytes in a folder that can be written",
        next_step="free some space or mend the folder, then: trainer resume RUN",
    )
