"""Loading: a checkpoint is read once, checked byte by byte, and only then looked into. Nothing is unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint.manifest import (
    FILES,
    MANIFEST,
    META,
    MODEL,
    NEXT,
    OPTIMIZER,
    STATE,
    TensorEntry,
    describe,
    read_manifest,
    read_verified,
)
from karat.trainer.checkpoint.meta import Meta
from karat.trainer.checkpoint.retention import BEST, NAME, STEP_NAME
from karat.trainer.checkpoint.rng import RngState
from karat.trainer.checkpoint.state_tree import join
from karat.trainer.checkpoint.storage import REPLACED


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The whole state of a run after `step` optimizer steps, every byte checked; tensors on the CPU."""

    path: Path
    step: int
    model_state: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    extra: dict[str, Any]
    rng: RngState
    config_digest: str
    settings: dict[str, Any]
    model: dict[str, TensorEntry]
    """Name -> type and shape of the model's tensors."""
    meta: Meta | None = None
    """What meta.json says; None for format version 1, which has none."""


@dataclass(frozen=True)
class Latest:
    """The newest complete checkpoint, and one line for each newer one that is damaged."""

    path: Path
    step: int
    damaged: tuple[str, ...] = ()


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`. CheckpointError if anything is missing, altered or of another version."""
    manifest, contents = read_verified(path)
    try:
        model_state = safetensors.torch.load(contents[MODEL])
        tree = join(json.loads(contents[STATE]), safetensors.torch.load(contents[OPTIMIZER]))
        for name, first in tree["shared"].items():
            model_state[name] = model_state[first]
        rng = RngState(**tree["rng"])
        optimizer_state, extra = tree["optimizer"], tree["extra"]
        meta = Meta.model_validate_json(contents[META]) if META in contents else None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        seen = f"{path} agrees with its manifest but does not read as a checkpoint: {error!r}"
        raise CheckpointError(seen, required="files that karat wrote", next_step=NEXT) from error
    differences = model_differences(manifest.model, describe(model_state))
    if differences:
        seen = "\n".join([f"{path / MODEL} does not hold what its manifest says:", *differences])
        raise CheckpointError(seen, required="the tensors in the manifest", next_step=NEXT)
    return Checkpoint(
        path, manifest.step, model_state, optimizer_state, extra, rng, manifest.config_digest, manifest.settings,
        manifest.model, meta,
    )  # fmt: skip


def latest_checkpoint(folder: Path) -> Latest:
    """The newest checkpoint in `folder` that is complete, every hash checked, and why each newer one is not.

    Newest is by steps done; of equal ones, a step folder before `final` before `violation` before `best`.
    CheckpointError if none is complete.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        try:
            manifest, _ = read_verified(path)
        except CheckpointError as error:
            damaged.append(error.seen)
        else:
            return Latest(path, manifest.step, tuple(damaged))
    seen = "\n".join([f"there is no complete checkpoint in {folder}", *(f"  {why}" for why in damaged)])
    raise CheckpointError(seen, required="one at least", next_step="start the run anew: trainer run")


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.is_dir() and _is_checkpoint(path)]
    # A crash between the two renames of a replacement leaves the old folder under its hidden name: it counts.
    for left in folder.glob(f"{REPLACED}*"):
        if not (folder / left.name.removeprefix(REPLACED)).exists():
            paths.append(left)
    return sorted(paths, key=_age)


def _is_checkpoint(path: Path) -> bool:
    """Whether a folder is one, complete or not: by its name, or by what it holds of what a named one holds."""
    if STEP_NAME.fullmatch(path.name):
        return True
    return bool(NAME.fullmatch(path.name)) and any((path / file).exists() for file in (*FILES, MANIFEST))


def _age(path: Path) -> tuple[float, bool, bool, str]:
    """A key that sorts the newest first: by steps done; a named one that does not say how many comes before all."""
    match = STEP_NAME.fullmatch(path.name.removeprefix(REPLACED))
    try:
        step: float = read_manifest(path).step
    except CheckpointError:
        step = int(match[1]) if match else math.inf
    return -step, match is None, path.name.removeprefix(REPLACED) == BEST, path.name


def model_differences(required: Mapping[str, TensorEntry], seen: Mapping[str, TensorEntry]) -> list[str]:
    """One line for each tensor that only one side has, or that differs in type or shape; at most eight lines."""
    lines = [f"  {name}: required {required[name]}, absent" for name in required if name not in seen]
    lines += [f"  {name}: present as {seen[name]}, not required" for name in seen if name not in required]
    lines += [
        f"  {name}: required {required[name]}, seen {seen[name]}"
        for name in required
        if name in seen and required[name] != seen[name]
    ]
    most = 8
    return lines if len(lines) <= most else [*lines[:most], f"  and {len(lines) - most} more"]
