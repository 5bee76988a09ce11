"""What hangs below the attributes of modules: containers with their members, tensors, generators, arrays, plain objects."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.touched import opaque, package, trusted

DEPTH = 4
"""How many containers deep attributes are kept: an optimizer's state is parameter -> name -> tensor."""
MOST_BYTES = 1 << 29
"""Of tensors and arrays that are copied, so that they can be put back."""
MOST_MEMBERS = 1 << 20


class Walk:
    """Collects. own: packages whose objects are walked into, the user's; names: those that the code of the forwards has,
    for what hangs under such a name is changed by them. refusal: why something cannot be put back."""

    def __init__(
        self, parameters: bool = True, own: frozenset[str] = frozenset(), names: set[str] | None = None
    ) -> None:
        self._parameters, self._own, self._names = parameters, own, names or set()
        self.tensors: dict[int, Tensor] = {}
        self.containers: dict[int, tuple[Any, Any]] = {}
        self.generators: dict[int, tuple[Any, Any]] = {}
        self.arrays: dict[int, tuple[Any, Any]] = {}
        self.slots: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.refusal = ""
        self._bytes = self._members = 0

    def holder(self, module: nn.Module) -> None:
        """A module: its attributes, and those of them that its code mentions whatever their class."""
        self.visit(module.__dict__)
        self._slots(module, 0)
        for name, value in module.__dict__.items():
            if name in self._names:
                self.reached(value)

    def reached(self, value: Any, depth: int = 0) -> None:
        """What the code of a forward has in its hands: objects of any class but torch's own are walked into."""
        if opaque(value):
            self._refuse(f"its forward uses a {type(value).__name__}, which cannot be put back")
        elif _is_object(value) and not trusted(type(value)):
            self._object(value, depth)
        else:
            self.visit(value, depth)

    def batch(self, batch: Any) -> None:
        """The arguments of a forward."""
        args, kwargs = (
            batch if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], dict) else (batch, {})
        )
        self.visit(batch)
        for value in (*(args if isinstance(args, tuple) else (args,)), *kwargs.values()):
            self.reached(value)

    def visit(self, value: Any, depth: int = 0) -> None:
        """Takes in a value and, `DEPTH` containers deep, what it contains."""
        if isinstance(value, Tensor):
            if id(value) not in self.tensors and (self._parameters or not isinstance(value, nn.Parameter)):
                self.tensors[id(value)] = value
                self._count(value.numel() * value.element_size() if whole(value) else 0)
        elif isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
            self.generators[id(value)] = (value, generator_state(value))
        elif isinstance(value, (np.ndarray, bytearray)):
            if id(value) not in self.arrays and (isinstance(value, bytearray) or value.flags.writeable):
                self._count(len(value) if isinstance(value, bytearray) else value.nbytes)
                if not self.refusal:
                    self.arrays[id(value)] = (value, value[:] if isinstance(value, bytearray) else value.copy())
        elif isinstance(value, (list, set, dict, deque)):
            self._container(value, depth)
        elif isinstance(value, tuple):
            if depth < DEPTH:
                for member in value:
                    self.visit(member, depth + 1)
        elif _is_object(value) and package(type(value)) in self._own:
            self._object(value, depth)

    def _container(self, value: Any, depth: int) -> None:
        if id(value) in self.containers or depth >= DEPTH:
            return
        members = dict(value) if isinstance(value, dict) else list(value)
        self._members += len(members)
        if self._members > MOST_MEMBERS:
            self._refuse("its modules hold more than can be kept")
            return
        self.containers[id(value)] = (value, members)
        for member in members.values() if isinstance(members, dict) else members:
            self.visit(member, depth + 1)

    def _object(self, value: Any, depth: int) -> None:
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict) and id(held) not in self.containers:
            self.visit(held, depth + 1)
            for member in held.values() if depth < DEPTH else ():
                if opaque(member):
                    self._refuse(f"its forward uses a {type(member).__name__}, which cannot be put back")
        self._slots(value, depth)

    def _slots(self, value: Any, depth: int) -> None:
        for base in type(value).__mro__:
            named = () if trusted(base) else base.__dict__.get("__slots__", ())
            for name in (named,) if isinstance(named, str) else named:
                if (id(value), name) not in self.slots and hasattr(value, name) and not name.startswith("__"):
                    held = getattr(value, name)
                    self.slots[id(value), name] = (value, name, held)
                    if depth < DEPTH:
                        self.visit(held, depth + 1)

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_BYTES and not self._parameters:
            self._refuse(f"its buffers and inputs are more than {MOST_BYTES >> 20} MiB, too much to be copied")

    def _refuse(self, why: str) -> None:
        self.refusal = self.refusal or why


def whole(tensor: Tensor) -> bool:
    """Whether its bits can be copied and put back: dense, on a device, and no shard."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested or hasattr(tensor, "to_local"))


def _is_object(value: Any) -> bool:
    return not isinstance(value, (nn.Module, type, str, bytes, int, float, complex, type(None))) and (
        hasattr(value, "__dict__") or hasattr(type(value), "__slots__")
    )


def generator_state(generator: Any) -> Any:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
