"""Which checkpoints stay: the newest keep_last step folders, and each named one until it is written anew."""

from __future__ import annotations

import re
from pathlib import Path

from karat.core.errors import CheckpointError
from karat.trainer.checkpoint.manifest import read_manifest

STEP_NAME = re.compile(r"step-(\d{6,})")
NAME = re.compile(r"(?!step-)[a-z][a-z0-9-]*")
BEST = "best"
FINAL = "final"


def step_name(step: int) -> str:
    """The folder of a checkpoint after `step` steps."""
    return f"step-{step:06d}"


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each folder/step-NNNNNN, rising by step."""
    found = ((STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def surplus(folder: Path, written: Path, keep_last: int) -> list[Path]:
    """The step folders that leave when `written` arrives: all but it and the newest keep_last - 1 others.

    Complete ones stay before ones that a file is missing of or is cut off in. For a named `written`, none leaves.
    """
    if not STEP_NAME.fullmatch(written.name):
        return []
    others = [(_looks_complete(path), step, path) for step, path in step_folders(folder) if path != written]
    others.sort(reverse=True)
    return [path for _, _, path in others[keep_last - 1 :]]


def _looks_complete(path: Path) -> bool:
    """Whether the manifest is whole and each file has its size; hashes are for loading, they take as long."""
    try:
        files = read_manifest(path).files
        return all((path / name).stat().st_size == files[name].bytes for name in files)
    except (CheckpointError, OSError):
        return False
