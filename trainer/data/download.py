"""A named corpus is one exact file: found where the user keeps data or downloaded; hashed every time."""

import contextlib
import http.client
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from karat.core.errors import DataError
from karat.trainer.data.cache import keep
from karat.trainer.data.manifest import sha256_hex

TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class PinnedText:
    """One exact text: file name, where it can be had, its size in bytes and its SHA-256."""

    name: str
    url: str
    size: int
    sha256: str


TINY_SHAKESPEARE = PinnedText(
    name="tiny_shakespeare.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


class Readable(Protocol):
    """What an opened URL has to offer."""

    def read(self, size: int, /) -> bytes: ...


Opener = Callable[[str], AbstractContextManager[Readable]]


def open_url(url: str) -> AbstractContextManager[Readable]:
    """The URL opened for reading, with a timeout; OSError where that fails."""
    opened: AbstractContextManager[Readable] = urllib.request.urlopen(url, timeout=TIMEOUT)
    return opened


def pinned_text(text: PinnedText, folders: Sequence[Path], cache: Path, opener: Opener = open_url) -> bytes:
    """The exact bytes of the text: from the first folder that has the file, else the cache, else downloaded.

    DataError where the hash is wrong (a wrong download or cache entry is removed) or the download fails;
    StorageError where the cache cannot be written.
    """
    for folder in folders:
        if (folder / text.name).is_file():
            return _checked(text, _read(folder / text.name), f"{folder / text.name}", f"replace it by {text.url}")
    cached = cache / text.name
    if cached.is_file():
        content = _read(cached)
        if sha256_hex(content) != text.sha256:
            with contextlib.suppress(OSError):
                cached.unlink()
        return _checked(text, content, f"{cached}", "it has been removed: run again to download it afresh")
    content = _checked(text, _download(text, folders, opener), text.url, _local_advice(text))
    keep(content, cached)
    return content


def _checked(text: PinnedText, content: bytes, where: str, next_step: str) -> bytes:
    found = sha256_hex(content)
    if found != text.sha256:
        seen = f"{where} has SHA-256 {found} ({len(content):,} bytes)"
        raise DataError(seen, required=f"SHA-256 {text.sha256} ({text.size:,} bytes)", next_step=next_step)
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        seen = f"cannot read {path}: {error.strerror or error}"
        raise DataError(seen, required="a readable file", next_step="check its permissions") from error


def _download(text: PinnedText, folders: Sequence[Path], opener: Opener) -> bytes:
    try:
        with opener(text.url) as response:
            return _read_up_to(response, text.size + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        looked = "".join(f"; not in {folder}" for folder in folders)
        seen = f"cannot download {text.url}: {error}{looked}"
        raise DataError(seen, required=f"{text.name} ({text.size:,} bytes)", next_step=_local_advice(text)) from error


def _read_up_to(response: Readable, size: int) -> bytes:
    """At most `size` bytes: enough to know that a longer answer is the wrong one."""
    parts: list[bytes] = []
    while size > 0 and (part := response.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _local_advice(text: PinnedText) -> str:
    return f"put {text.name} into a folder and export KARAT_DATA=FOLDER, or train on stdlib or your own file"
