"""Checkpoints: the whole state of a run on disk, written atomically, checked byte by byte, restored bit for bit."""

from karat.trainer.checkpoint.load import Checkpoint, Latest, latest_checkpoint, load_checkpoint
from karat.trainer.checkpoint.meta import Meta, measured
from karat.trainer.checkpoint.restore import (
    require_same_config,
    require_same_model,
    restore_model,
    restore_optimizer,
)
from karat.trainer.checkpoint.rng import RngState, capture_rng, restore_rng
from karat.trainer.checkpoint.save import Draft, draft, save_checkpoint
from karat.trainer.checkpoint.saver import CheckpointSaver
from karat.trainer.checkpoint.space import NoRoom

__all__ = [
    "Checkpoint",
    "CheckpointSaver",
    "Draft",
    "Latest",
    "Meta",
    "NoRoom",
    "RngState",
    "capture_rng",
    "draft",
    "latest_checkpoint",
    "load_checkpoint",
    "measured",
    "require_same_config",
    "require_same_model",
    "restore_model",
    "restore_optimizer",
    "restore_rng",
    "save_checkpoint",
]
