"""The manifest names every byte that a run trained and was scored on, so that anyone can check them.

It holds relative paths and content hashes only, never a place on a machine: the same text gives the same
digest wherever it lies.
"""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from karat.trainer.data.disjoint import Overlap

Side = Literal["train", "validation", "both"]


class FileRecord(BaseModel):
    """One text file: where it lies below the source, which side it is on, and the SHA-256 of the whole file.

    side is "both" for a file that a contiguous split cuts in two. bytes and sha256 are of the whole file, so
    that `sha256sum` checks them. A name that is not UTF-8 is written with backslash escapes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    side: Side
    bytes: int
    sha256: str


class TokenRecord(BaseModel):
    """How the text became tokens: the tokenizer, trained on the training side alone, and what it made of both sides.

    tokenizer_sha256: of pattern, pieces and merges (`Tokenizer.digest`). *_tokens_sha256: of the tokens as
    little-endian uint16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bpe"]
    vocab: int
    tokenizer_sha256: str
    train_tokens: int
    validation_tokens: int
    train_tokens_sha256: str
    validation_tokens_sha256: str


class Manifest(BaseModel):
    """What a corpus is made of, how it was split, and how much its two sides share.

    source: the corpus name, or the last part of the path. rule: the split, in words. files: in the order in
    which they were joined. skipped: files left out because they are empty, not text, or identical to an
    earlier one. train_* and validation_*: of the joined bytes of each side. python_version: for the standard
    library only, whose text differs between versions. tokens: None where tokens are bytes, and then not in the JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    rule: str
    files: tuple[FileRecord, ...]
    skipped: int
    train_bytes: int
    validation_bytes: int
    train_sha256: str
    validation_sha256: str
    overlap: Overlap
    python_version: str | None = None
    tokens: TokenRecord | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of `canonical_json`: equal digests, equal bytes on both sides."""
        return sha256_hex(self.canonical_json().encode())

    def canonical_json(self) -> str:
        """The manifest as one line of ASCII JSON: keys sorted, no spaces."""
        left_out = {"tokens"} if self.tokens is None else set()
        return json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True, separators=(",", ":"))


def sha256_hex(content: bytes) -> str:
    """SHA-256 of the content as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()
