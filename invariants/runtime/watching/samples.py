"""What a user gives as data, as samples of bytes or a stream of tokens: tensors, arrays, texts, data sets, loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from karat.core.errors import ConfigError
from karat.invariants.run import overlap
from karat.invariants.run.overlap import Overlap
from karat.invariants.runtime.preflight.trees import leaves

MOST_SAMPLES = 20_000


def compared(train: Any, validation: Any) -> list[Overlap]:
    """The overlaps of two parts of the data: by index where both are subsets of one data set, by samples, by tokens."""
    ours, theirs = _data(train), _data(validation)
    if isinstance(ours, Subset) and isinstance(theirs, Subset) and ours.dataset is theirs.dataset:
        known = set(ours.indices)
        shared = [place for place, index in enumerate(theirs.indices) if index in known]
        return [Overlap("indices", len(shared), len(theirs.indices), 0.0, tuple(shared[:4]))]
    found = []
    first, second = tokens(ours), tokens(theirs)
    if first is not None and second is not None:
        found.append(overlap.of_tokens(first, second))
    if first is None or second is None or first.ndim > 1:
        found.append(overlap.of_samples(samples(ours), samples(theirs)))
    return found


def tokens(data: Any) -> np.ndarray | None:
    """A stream of tokens, or rows of them (N, T): integers of one or two axes, or one text; None for all else."""
    if isinstance(data, str):
        return np.frombuffer(data.encode(), dtype=np.uint8)
    if isinstance(data, (bytes, bytearray)):
        return np.frombuffer(bytes(data), dtype=np.uint8)
    array = data.detach().cpu().numpy() if isinstance(data, Tensor) and not data.is_floating_point() else data
    if isinstance(array, list) and array and all(isinstance(x, int) for x in array[:64]):
        array = np.asarray(array)
    if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.ndim in (1, 2):
        return array
    return None


def samples(data: Any) -> Iterator[bytes]:
    """The samples of a data set as bytes, at most MOST_SAMPLES; of a pair the input alone, so that labels do not hide it."""
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ConfigError(
            f"{type(data).__name__} cannot be compared",
            required="a tensor, an array, a text, a list, or a data set with a length",
            next_step="guards.split(train=train_set, validation=validation_set)",
        )  # fmt: skip
    for place in range(min(len(data), MOST_SAMPLES)):
        yield _bytes(data[place])


def _data(given: Any) -> Any:
    """A loader's data set; a tensor data set's first tensor."""
    if isinstance(given, DataLoader):
        given = given.dataset
    held = getattr(given, "tensors", None)
    if isinstance(held, tuple) and held and isinstance(held[0], Tensor):
        return held[0]
    return given


def _bytes(sample: Any) -> bytes:
    if isinstance(sample, (tuple, list)) and sample and not isinstance(sample[0], (int, float)):
        sample = sample[0]
    if isinstance(sample, dict) and sample:
        sample = sample.get("input_ids", next(iter(sample.values())))
    tensors = [t for _, t in leaves(sample)]
    if tensors:
        return b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in map(_numpy_ready, tensors))
    if isinstance(sample, np.ndarray):
        return np.ascontiguousarray(sample).tobytes()
    return repr(sample).encode()


def _numpy_ready(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor
