"""Where the guards speak and write: a stream that is closed, or a disk that is full, silences them and not the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from karat.core.errors import ConfigError, StorageError
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.watching.interrupts import from_signal


class Said:
    """Speaks as it was told to; an exception there is dropped. Nothing is said while something is being said."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._speaking = say, False

    def __call__(self, text: str) -> None:
        if self._speaking:
            return
        self._speaking = True
        try:
            self._say(text)
        except Exception as error:
            if from_signal(error):
                raise
        finally:
            self._speaking = False


class Rows:
    """A ledger that ends at the first row that cannot be written, and says so once."""

    def __init__(self, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._ledger: Ledger | None = ledger
        self._say = say

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, while that is possible."""
        if self._ledger is None:
            return
        try:
            self._ledger.write(row)
        except (StorageError, OSError, ValueError, TypeError) as error:
            self.close()
            self._say(f"no more rows are written to the ledger of the guards: {error}")

    def close(self) -> None:
        """Closes the file; again is harmless."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            try:
                ledger.close()
            except OSError as error:
                self._say(f"the ledger of the guards cannot be closed: {error}")


def require_writable(path: Path) -> None:
    """ConfigError where the report could not be written at the end: it is said before the run, not after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
        if path.is_dir():
            raise IsADirectoryError(21, "is a directory")
    except OSError as error:
        raise ConfigError(
            f"report = {path}: {error.strerror or error}", required="a file in a folder that can be written"
        ) from None
