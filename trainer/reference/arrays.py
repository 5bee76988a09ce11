"""The types of the reference: float64 arrays, boolean masks, whole numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


def rows(x: Array) -> Array:
    """(..., d) -> (R, d): all leading axes as one."""
    flat: Array = x.reshape(-1, x.shape[-1])
    return flat


def require_within(indices: Indices, size: int, what: str) -> None:
    """ValueError unless every index is in [0, size): a negative one would silently count from the end."""
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"{what} must be in 0..{size - 1}, got {indices.min()}..{indices.max()}")
