"""The manifest says what a checkpoint is, byte by byte; a checkpoint is complete when every byte agrees with it.

manifest.json is written last and holds the size and SHA-256 of each file, the name, type and shape of each tensor of
the model, the configuration, and its own digest. Its text is canonical, so that no byte of it can change unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from karat.core.errors import CheckpointError
from karat.core.provenance import digest
from karat.trainer.checkpoint.tensor_file import Pieces

FORMAT = "karat-checkpoint"
VERSION = 2
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
META = "meta.json"
FILES = (MODEL, OPTIMIZER, STATE, META)
FILES_OF = {1: (MODEL, OPTIMIZER, STATE), VERSION: FILES}
"""Format version -> the files that a manifest lists. Version 1 is read, not written."""

NEXT = "trainer resume RUN takes the newest complete checkpoint"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """One file: its size in bytes and the SHA-256 of its content, in hex."""

    bytes: int = Field(ge=0)
    sha256: str


class TensorEntry(_Record):
    """One tensor: "float32" and its lengths."""

    dtype: str
    shape: list[int]

    def __str__(self) -> str:
        return f"{self.dtype} {tuple(self.shape)}"


class Manifest(_Record):
    """What a checkpoint holds. `step` is the number of optimizer steps done; `settings` are those that `config_digest`
    is the digest of, dotted name -> value, so that a difference can be named."""

    format: str = FORMAT
    version: int = VERSION
    step: int = Field(ge=0)
    config_digest: str
    settings: dict[str, Any]
    model: dict[str, TensorEntry]
    files: dict[str, FileEntry]


def describe(state: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Name -> type and shape: the signature by which a model knows its checkpoint."""
    return {
        name: TensorEntry(dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape))
        for name, tensor in state.items()
    }


def entry(content: Pieces) -> FileEntry:
    """The size and hash of a file's content."""
    hashed = hashlib.sha256()
    for piece in content:
        hashed.update(piece)
    return FileEntry(bytes=sum(map(len, content)), sha256=hashed.hexdigest())


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one text of a manifest, its digest included."""
    record = manifest.model_dump(mode="json")
    return _text(record | {"digest": digest(record)})


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint folder `path`; CheckpointError if it is missing, altered or of another version."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}", required="a checkpoint folder", next_step=NEXT)
    content = read_file(path, MANIFEST)
    try:
        record = json.loads(content)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"it is no {FORMAT}")
    except (ValueError, RecursionError) as error:
        raise _altered(path, str(error)) from None
    version = record.get("version")
    if type(version) is not int or version not in FILES_OF:
        raise CheckpointError(
            f"{path} has format version {version!r}",
            required=f"version {' or '.join(map(str, FILES_OF))}",
            next_step="load it with the karat that wrote it",
        )
    record.pop("digest", None)  # compared below, with every other byte
    try:
        manifest = Manifest.model_validate(record)
        intact = content == manifest_bytes(manifest)
    except (ValidationError, ValueError, RecursionError) as error:
        raise _altered(path, str(error).splitlines()[0]) from None
    if not intact:
        raise _altered(path, "its digest differs")
    if set(manifest.files) != set(FILES_OF[manifest.version]):
        raise _altered(path, f"it lists the files {sorted(manifest.files)}")
    return manifest


def read_verified(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the bytes of each file, all agreeing; CheckpointError names the first file that does not."""
    manifest = read_manifest(path)
    contents = {}
    for name in FILES_OF[manifest.version]:
        content, required = read_file(path, name), manifest.files[name]
        seen = entry([content])
        if seen.bytes != required.bytes:
            raise CheckpointError(
                f"{path / name} has {seen.bytes:,} bytes: it was cut off or altered",
                required=f"{required.bytes:,} bytes",
                next_step=NEXT,
            )
        if seen.sha256 != required.sha256:
            raise CheckpointError(
                f"{path / name} was altered: its SHA-256 is {seen.sha256[:16]}…",
                required=f"{required.sha256[:16]}…",
                next_step=NEXT,
            )
        contents[name] = content
    return manifest, contents


def read_file(path: Path, name: str) -> bytes:
    """The content of one file of a checkpoint; CheckpointError if it is missing or cannot be read."""
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        seen = f"{path} is incomplete: {name} is missing"
        raise CheckpointError(seen, required=", ".join((*FILES, MANIFEST)), next_step=NEXT) from None
    except OSError as error:
        seen = f"{path / name} cannot be read: {error.strerror or error}"
        raise CheckpointError(seen, required="a readable file") from error


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _altered(path: Path, why: str) -> CheckpointError:
    seen = f"{path / MANIFEST} was cut off or altered: {why}"
    return CheckpointError(seen, required="the manifest as it was written", next_step=NEXT)
