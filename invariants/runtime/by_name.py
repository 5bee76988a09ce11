"""A reading of observed values by name: numbers as they are, tensors with those of all other guards in one transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from karat.invariants.runtime.probes import Numbers, Reading


def reading_by_name(
    invariant_id: str, probe: str, observed: Mapping[str, Any], divisors: Mapping[str, float] | None = None
) -> Reading:
    """A reading of numbers and tensors by quantity. A tensor of shape () becomes a number, any other nested lists.

    divisors: what a value is divided by on the host, in float64, such as ln 2 for bits of nats.
    """
    tensors = {name: value for name, value in observed.items() if isinstance(value, torch.Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = {name: value for name, value in observed.items() if name not in tensors}

    def values(numbers: Numbers) -> Mapping[str, Any]:
        read = {**known, **{name: _nested(numbers[name], shape) for name, shape in shapes.items()}}
        return {**read, **{name: read[name] / by for name, by in (divisors or {}).items()}}

    return Reading(invariant_id, probe, tensors, values)


def _nested(flat: Sequence[float], shape: tuple[int, ...]) -> Any:
    """The numbers of a tensor in row-major order as lists in lists, or as a number."""
    if not shape:
        return flat[0]
    size = len(flat) // max(shape[0], 1)
    return [_nested(flat[k * size : (k + 1) * size], shape[1:]) for k in range(shape[0])]
