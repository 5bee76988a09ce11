"""Samples of parameters: a few elements spread over each, as views that cost nothing to keep and little to compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST = 256
"""Elements of a sample."""
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def largest(tensor: Tensor) -> Tensor:
    """The largest magnitude, NaN where there is one; the norm of this order takes twenty times as long."""
    if tensor.is_sparse:
        tensor = tensor._values()
        if not tensor.numel():
            return tensor.new_zeros(())
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high)


def fit(tensor: Tensor) -> bool:
    """Whether a sample of it can be taken: dense, in one piece, of a floating type, in this process."""
    return (
        tensor.dtype in FLOATS
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and not hasattr(tensor, "to_local")
        and not hasattr(tensor, "ds_id")  # a shard of ZeRO-3, whose storage comes and goes
        and not tensor.is_meta
        and not tensor.is_inference()
        and in_one_piece(tensor)
    )


def in_one_piece(tensor: Tensor) -> bool:
    """Whether its elements fill a run of its storage, in whatever order, and the storage is there."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    held = tensor.untyped_storage().nbytes()
    return held >= (tensor.storage_offset() + tensor.numel()) * tensor.element_size()


def spread(tensor: Tensor, most: int = MOST) -> Tensor:
    """A view of at most `most` elements of a tensor that is `fit`, spread over it by an odd stride."""
    count = tensor.numel()
    stride = max(1, count // most)
    stride -= stride > 1 and stride % 2 == 0  # an even one would stay in one column of most matrices
    return tensor.detach().as_strided((min(most, (count - 1) // stride + 1),), (stride,), tensor.storage_offset())


def run_of(tensor: Tensor, most: int) -> Tensor:
    """A view of at most `most` elements of a tensor that is `fit`, which lie together in the middle of its storage."""
    count = min(most, tensor.numel())
    return tensor.detach().as_strided((count,), (1,), tensor.storage_offset() + (tensor.numel() - count) // 2)


class View:
    """The sample of a parameter, kept: made anew when the parameter's numbers are elsewhere."""

    __slots__ = ("_most", "_view", "tensor")

    def __init__(self, tensor: Tensor, most: int = MOST) -> None:
        self.tensor, self._most = tensor, most
        self._view = spread(tensor, most)

    def now(self) -> Tensor:
        """The sample as it is; ValueError where none can be taken any more."""
        if self.tensor.data_ptr() != self._view.data_ptr():
            if not fit(self.tensor):
                raise ValueError("a parameter that was sampled is not in one piece any more")
            self._view = spread(self.tensor, self._most)
        return self._view


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether samples of two tensors are of the same places."""
    return first.shape == second.shape and first.stride() == second.stride() and first.device == second.device


def norms32(tensors: list[Tensor]) -> list[Tensor]:
    """2-norms of samples, as 0-d tensors of float32."""
    if all(t.dtype is torch.float32 for t in tensors):
        return list(torch._foreach_norm(tensors))
    return [torch.linalg.vector_norm(t, dtype=torch.float64).float() for t in tensors]


def sharded(model: nn.Module) -> bool:
    """Whether the storage of parameters comes and goes between forward and step."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def rate_of(group: dict[str, Any]) -> float | None:
    """The rate of a group; None where it has none that is known without waiting for a device."""
    rate = group.get("lr")
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" else None
    return float(rate) if isinstance(rate, (int, float, np.number)) else None


def native(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's own, that writes to every parameter with a gradient at every step."""
    return type(optimizer).__module__.startswith("torch.optim")


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each was written to in place."""
    return [t._version for t in tensors]


def window(count: int, most: int, step: int) -> range:
    """The places that are looked at in a step, at most so many, in turn."""
    parts = -(-count // most)
    if parts <= 1:
        return range(count)
    start = step % parts * most
    return range(start, min(start + most, count))
