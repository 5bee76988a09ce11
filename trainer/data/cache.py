"""Where downloads and encoded corpora are kept, and how a file gets there: whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from karat.core.errors import StorageError


def cache_folder() -> Path:
    """Where downloads are kept: karat/ below XDG_CACHE_HOME where that is an absolute path, else ~/.cache."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if configured.is_absolute():
        return configured / "karat"
    try:
        return Path.home() / ".cache" / "karat"
    except RuntimeError as error:
        seen = f"no home folder to keep downloads in: {error}"
        raise StorageError(seen, next_step="set XDG_CACHE_HOME to a writable folder") from error


def keep(content: bytes, target: Path) -> None:
    """Writes the file under a temporary name and renames it: a reader sees all of it or nothing. StorageError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> StorageError:
    seen = f"cannot keep {target.name} in {target.parent}: {error.strerror or error}"
    return StorageError(seen, required="a writable folder", next_step="set XDG_CACHE_HOME to a writable folder")
