"""Saving: the whole state of a run as one folder, written atomically; older ones leave at the instant it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from karat.trainer.checkpoint import tensor_file
from karat.trainer.checkpoint.manifest import (
    FILES,
    MANIFEST,
    META,
    MODEL,
    OPTIMIZER,
    STATE,
    FileEntry,
    Manifest,
    TensorEntry,
    describe,
    entry,
    manifest_bytes,
)
from karat.trainer.checkpoint.meta import Meta, meta_bytes
from karat.trainer.checkpoint.retention import NAME, step_name, surplus
from karat.trainer.checkpoint.rng import RngState
from karat.trainer.checkpoint.space import FreeBytes, free_bytes, require_room
from karat.trainer.checkpoint.state_tree import JSON, apart, split, stored_once
from karat.trainer.checkpoint.storage import write_folder

UNKNOWN_HASH = "0" * 64


@dataclass(frozen=True, eq=False)
class Draft:
    """A checkpoint to be: its plain data as they were when it was made, its tensors the run's own until `held`."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File -> name -> tensor."""
    plain: Mapping[str, bytes]
    model: dict[str, TensorEntry]
    config_digest: str
    settings: dict[str, JSON]

    def held(self, hold: Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Draft:
        """The same with each file's tensors replaced by hold(file, tensors): contiguous, on the CPU."""
        return replace(self, tensors={file: hold(file, tensors) for file, tensors in self.tensors.items()})

    def manifest(self, files: dict[str, FileEntry]) -> bytes:
        """The manifest's text, the files being these."""
        return manifest_bytes(
            Manifest(
                step=self.step, config_digest=self.config_digest, settings=self.settings, model=self.model, files=files
            )
        )

    @cached_property
    def size(self) -> int:
        """Bytes of the folder's files, exactly: a hash has its length before it is known."""
        sizes = {file: tensor_file.size(tensors) for file, tensors in self.tensors.items()}
        sizes |= {file: len(content) for file, content in self.plain.items()}
        files = {file: FileEntry(bytes=sizes[file], sha256=UNKNOWN_HASH) for file in FILES}
        return sum(sizes.values()) + len(self.manifest(files))

    def contents(self) -> dict[str, tensor_file.Pieces]:
        """File -> content, the manifest last; the tensors are those of `held`."""
        contents: dict[str, tensor_file.Pieces] = {
            file: tensor_file.pieces(self.tensors[file]) if file in self.tensors else [self.plain[file]]
            for file in FILES
        }
        return {**contents, MANIFEST: [self.manifest({file: entry(content) for file, content in contents.items()})]}


def draft(
    *,
    step: int,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    extra: Mapping[str, Any],
    rng: RngState,
    config_digest: str,
    settings: Mapping[str, JSON] | None = None,
    meta: Meta | None = None,
) -> Draft:
    """The checkpoint of a run after `step` optimizer steps. Plain data are taken over now, tensors not yet.

    settings: those behind config_digest (`RunConfig.trajectory`), so that a later difference can be named. meta: what
    meta.json says. TypeError for a state that is not plain data and dense tensors; ValueError for a negative step.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    tensors, shared = stored_once(model_state)
    record, state_tensors = split(_tree(optimizer_state, extra, rng, shared))
    return Draft(
        step=step,
        tensors={MODEL: tensors, OPTIMIZER: state_tensors},
        plain={
            STATE: json.dumps(record, allow_nan=False).encode(),
            META: meta_bytes(meta or Meta(step=step, config_digest=config_digest)),
        },
        model=describe(model_state),
        config_digest=config_digest,
        settings=dict(settings or {}),
    )


def on_cpu(file: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """For `Draft.held`: the run's own tensors, copied only where they are elsewhere or in pieces."""
    return apart(tensors)


def write(checkpoint: Draft, target: Path, keep_last: int) -> None:
    """Writes a draft that is held; afterwards exactly the newest keep_last step folders remain, this one among them."""
    write_folder(target, checkpoint.contents(), partial(surplus, target.parent, target, keep_last))


def save_checkpoint(
    folder: Path, *, step: int, keep_last: int, name: str | None = None, free: FreeBytes = free_bytes, **state: Any
) -> Path:
    """Writes folder/step-000123, or folder/name ("final", "violation"), whole or not at all; returns its path.

    state: as of `draft`. Afterwards the newest keep_last step folders remain, this one among them; named ones stay.
    Raises StorageError where the system refuses, NoRoom where there is no space (before a byte is written, if that
    can be known), with older checkpoints intact; TypeError for a state that is not plain data and tensors; ValueError
    for a step, name or keep_last out of range.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last must be >= 1, got {keep_last}")
    target = folder / folder_name(step, name)
    made = draft(step=step, **state)
    require_room(target, made.size, free)
    write(made.held(on_cpu), target, keep_last)
    return target


def folder_name(step: int, name: str | None) -> str:
    """The name of a checkpoint's folder; ValueError for one that is no name."""
    if name is None:
        return step_name(step)
    if not NAME.fullmatch(name):
        raise ValueError(f"a checkpoint's name is lower-case letters, digits and '-', not {name!r}")
    return name


def _tree(
    optimizer_state: Mapping[str, Any], extra: Mapping[str, Any], rng: RngState, shared: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "optimizer": optimizer_state,
        "extra": extra,
        "shared": shared,
        "rng": {
            "python": rng.python,
            "numpy": rng.numpy,
            "torch": rng.torch,
            "generators": rng.generators,
        },
    }
