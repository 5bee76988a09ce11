"""Saving: the whole state of a run as one folder, written atomically, and the oldest ones removed after it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint.manifest import (
    FILES,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Manifest,
    describe,
    entry,
    manifest_bytes,
    read_manifest,
)
from karat.trainer.checkpoint.rng import RngState
from karat.trainer.checkpoint.state_tree import JSON, apart, split, stored_once
from karat.trainer.checkpoint.storage import remove_folder, write_folder

STEP_NAME = re.compile(r"step-(\d{6,})")
NAME = re.compile(r"(?!step-)[a-z][a-z0-9-]*")


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    extra: Mapping[str, Any],
    rng: RngState,
    config_digest: str,
    keep_last: int,
    settings: Mapping[str, JSON] | None = None,
    name: str | None = None,
) -> Path:
    """Writes folder/step-000123, or folder/name ("final", "violation"), whole or not at all; returns its path.

    step: optimizer steps done. settings: the settings behind config_digest (`RunConfig.trajectory`), so that a later
    difference can be named. Afterwards the newest keep_last step folders remain, this one among them; named ones stay.
    Raises StorageError where the system refuses, with older checkpoints intact; TypeError for a state that is not
    plain data and tensors; ValueError for a step, name or keep_last out of range.
    """
    if step < 0 or keep_last < 1:
        raise ValueError(f"step must be >= 0 and keep_last >= 1, got {step} and {keep_last}")
    if name is not None and not NAME.fullmatch(name):
        raise ValueError(f"a checkpoint's name is lower-case letters, digits and '-', not {name!r}")
    tensors, shared = stored_once(model_state)
    record, state_tensors = split(_tree(optimizer_state, extra, rng, shared))
    files = {
        MODEL: safetensors.torch.save(tensors, {"format": "pt"}),
        OPTIMIZER: safetensors.torch.save(apart(state_tensors), {"format": "pt"}),
        STATE: json.dumps(record, allow_nan=False).encode(),
    }
    manifest = Manifest(
        step=step,
        config_digest=config_digest,
        settings=dict(settings or {}),
        model=describe(model_state),
        files={file: entry(content) for file, content in files.items()},
    )
    target = folder / (name or f"step-{step:06d}")
    write_folder(target, {**files, MANIFEST: manifest_bytes(manifest)})
    if name is None:
        _keep_last(folder, target, keep_last)
    return target


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


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each folder/step-NNNNNN, rising by step."""
    found = ((STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _keep_last(folder: Path, written: Path, keep_last: int) -> None:
    """Keeps `written` and the newest others, complete ones before ones that a file is missing of or is cut off in."""
    others = [(_looks_complete(path), step, path) for step, path in step_folders(folder) if path != written]
    others.sort(reverse=True)
    for _, _, path in others[keep_last - 1 :]:
        remove_folder(path)


def _looks_complete(path: Path) -> bool:
    """Whether the manifest is whole and each file has its size; hashes are for loading, they take as long."""
    try:
        manifest = read_manifest(path)
        return all((path / name).stat().st_size == manifest.files[name].bytes for name in FILES)
    except (CheckpointError, OSError):
        return False
