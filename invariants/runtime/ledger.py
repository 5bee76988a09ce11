"""An append-only JSONL file that survives a crash: each row is one write, a torn last row is dropped on reopening."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from karat.core.errors import StorageError


class Ledger:
    """Rows of JSON, appended. Non-finite numbers are written as the strings "nan", "inf" and "-inf"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_row(path)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, in one write. StorageError when it does not fit."""
        line = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(28, "no space left on device")
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Closes the file; writing after that is an error."""
        os.close(self._file)

    def _cannot_write(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self.path}: {error.strerror or error}",
            required="a folder that can be written, with space left",
            next_step="free some space, or choose another folder with --set out=FOLDER",
        )


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers by value, non-finite ones and exact ones as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def drop_torn_row(path: Path) -> None:
    """Cuts off what a crash left behind the last complete row."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a ledger, in order."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
