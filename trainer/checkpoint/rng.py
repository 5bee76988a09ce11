"""The state of every random generator of a run, restorable bit for bit: Python's, NumPy's, torch's, and named ones.

Only the CPU's generator of torch is held; a run on another device has generators of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from karat.core.errors import CheckpointError

Generator = np.random.Generator | torch.Generator


@dataclass(frozen=True, eq=False)
class RngState:
    """The states as their libraries give them; plain data, arrays and tensors."""

    python: tuple[Any, ...]
    """random.getstate()"""
    numpy: dict[str, Any]
    """numpy.random.get_state(legacy=False), of the global generator."""
    torch: Tensor
    """torch.get_rng_state(): (5056,) uint8."""
    generators: Mapping[str, Any] = field(default_factory=dict)
    """Name -> state of the run's own generators."""


def capture_rng(**generators: Generator) -> RngState:
    """The present state of the global generators and of the ones given by name; none of them moves."""
    return RngState(
        random.getstate(),
        _global_numpy(),
        torch.get_rng_state(),
        {name: _state_of(generator) for name, generator in generators.items()},
    )


def restore_rng(state: RngState, **generators: Generator) -> None:
    """Sets the global generators, and those given by name, to what `capture_rng` saw.

    CheckpointError for names or kinds of generators that differ from the captured ones; nothing is set then but,
    at worst, some of the named generators.
    """
    if set(generators) != set(state.generators):
        raise CheckpointError(
            f"the checkpoint holds the generators {sorted(state.generators)}, the run has {sorted(generators)}",
            required="the same names",
        )
    for name, generator in generators.items():
        try:
            _set(generator, state.generators[name])
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the generator {name} cannot take the checkpoint's state: {error}",
                required="a generator of the kind that was saved",
            ) from error
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)


def _global_numpy() -> dict[str, Any]:
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return state


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.bit_generator.state


def _set(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
