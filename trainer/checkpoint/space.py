"""Is there room? What a checkpoint needs is known to the byte before it is written; what is free, the system says."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from karat.core.errors import StorageError

RESERVE = 8 * 2**20
"""Bytes that stay free beside a checkpoint: the rounding of its files to whole blocks (at most 64 KiB each, as on the
coarsest file systems in use), folders, and what the run's log, ledger and report still grow by."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers to a write where the disk, the user's quota or the largest allowed file is full."""

FreeBytes = Callable[[Path], int | None]
"""Folder -> bytes that this user may still write there; None where the system does not say."""


class NoRoom(StorageError):
    """A checkpoint that does not fit. `needed`, `free`: bytes; free is None where a write was refused midway."""

    def __init__(self, seen: str, target: Path, *, needed: int, free: int | None) -> None:
        super().__init__(
            seen,
            required=f"{needed:,} bytes for the checkpoint and {RESERVE:,} in reserve",
            next_step="free some space, or keep fewer: checkpoint.keep_last=1, checkpoint.keep_best=false",
        )
        self.target, self.needed, self.free = target, needed, free


def free_bytes(folder: Path) -> int | None:
    """Free bytes where `folder` is or will be made: those of its nearest parent that exists."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return None
    return usage.free if usage.total else None  # some network file systems answer zero of zero


def require_room(target: Path, needed: int, free: FreeBytes, *, before: int = 0) -> None:
    """NoRoom unless `needed` bytes and the reserve are free, `before` others having been written first.

    The checkpoint that a new one replaces counts for nothing: it goes only when the new one is complete.
    """
    room = free(target.parent)
    if room is None or needed + before + RESERVE <= room:
        return
    rest = f", of which {before:,} are for one that comes before" if before else ""
    raise NoRoom(
        f"{target} was not written: it needs {needed:,} bytes and {RESERVE:,} in reserve, {room:,} are free{rest}; "
        "older checkpoints are untouched",
        target,
        needed=needed,
        free=room,
    )
