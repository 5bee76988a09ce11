"""A copy of a run's tensors at one moment, bit for bit, in memory that is kept for the next one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Buffers:
    """CPU memory for one snapshot: as much as the tensors of a checkpoint take, allocated by the first, then reused."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held, whether a snapshot is in use or not."""
        return sum(tensor.nbytes for tensors in self._kept.values() for tensor in tensors.values())

    def hold(self, file: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """For `Draft.held`: copies of the tensors as they are now. What was held for `file` before is overwritten."""
        old = self._kept.get(file, {})
        new = {name: _room(tensor, old.get(name)) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            new[name].copy_(tensor)
        self._kept[file] = new
        return new


def _room(tensor: Tensor, kept: Tensor | None) -> Tensor:
    if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
        return kept
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
