"""Everything that a probe may move, kept and put back bit for bit: tensors keep their storage, objects their identity.

Kept are the parameters of model and optimizers with their gradients and requires_grad, buffers, the attributes of
every module (train and eval mode are among them), the optimizers' states and groups, the tensors of the batch, and the
generators of Python, NumPy and torch. An attribute that is a list, set or dictionary is kept with its members, and so is
an object of a class from the package of one of the modules; what lies outside model, optimizers and batch is not.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.trees import leaves

DEPTH = 4
"""How many containers deep attributes are kept: an optimizer's state is parameter -> name -> tensor."""


class _KeptTensor:
    """One tensor: its storage and bits; for a leaf also its gradient and whether it asks for one."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._storage = tensor, tensor.data  # no version is counted up: a graph may be alive
        self._bits = self._storage.clone()
        self._asks = tensor.requires_grad if tensor.is_leaf else None
        self._grad = tensor.grad if tensor.is_leaf else None
        self._grad_bits = None if self._grad is None else self._grad.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        if self._tensor.data_ptr() != self._storage.data_ptr() or self._tensor.shape != self._storage.shape:
            self._tensor.data = self._storage
        self._storage.copy_(self._bits)
        if self._asks is None:
            return
        self._tensor.requires_grad_(self._asks)
        if self._grad is not None and self._grad_bits is not None:
            self._grad.data.copy_(self._grad_bits)
        self._tensor.grad = self._grad


class _Walk:
    """Collects what hangs below a dictionary of attributes: containers with their members, tensors, generators, and the
    attributes of plain objects whose classes come from the packages `own`, the user's."""

    def __init__(self, parameters: bool = True, own: frozenset[str] = frozenset()) -> None:
        self._parameters, self._own = parameters, own
        self.tensors: dict[int, Tensor] = {}
        self.containers: dict[int, tuple[Any, Any]] = {}
        self.generators: dict[int, tuple[Any, Any]] = {}

    def visit(self, value: Any, depth: int = 0) -> None:
        """Takes in a value and, `DEPTH` containers deep, what it contains."""
        if isinstance(value, Tensor):
            if self._parameters or not isinstance(value, nn.Parameter):
                self.tensors[id(value)] = value
        elif isinstance(value, (torch.Generator, np.random.Generator, random.Random)):
            self.generators[id(value)] = (value, _generator_state(value))
        elif isinstance(value, (list, set, dict, deque)) and id(value) not in self.containers and depth < DEPTH:
            members = dict(value) if isinstance(value, dict) else list(value)
            self.containers[id(value)] = (value, members)
            for member in members.values() if isinstance(members, dict) else members:
                self.visit(member, depth + 1)
        elif isinstance(value, tuple) and depth < DEPTH:
            for member in value:
                self.visit(member, depth + 1)
        elif not isinstance(value, (nn.Module, type)) and _package(type(value)) in self._own:
            self.visit(getattr(value, "__dict__", None), depth + 1)


class Kept:
    """What model, optimizers, batch and generators are when it is made; `put_back` makes them so again, any time.

    parameters=False: of parameters only which ones there are, not their numbers, for forwards that change none.
    """

    def __init__(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], batch: Any, *, parameters: bool = True
    ) -> None:
        modules = list(model.modules())
        walk = _Walk(parameters, frozenset(_package(type(module)) for module in modules) - {"torch"})
        for holder in (*modules, *optimizers):
            walk.visit(holder.__dict__)
        for _, tensor in leaves(batch):
            walk.visit(tensor)
        walk.visit(batch)
        self._containers, self._generators = list(walk.containers.values()), list(walk.generators.values())
        self._tensors = [_KeptTensor(tensor) for tensor in walk.tensors.values()]
        self._random = _random_state()

    def put_back(self) -> None:
        """Restores everything; harmless when nothing moved."""
        for container, members in self._containers:
            _refill(container, members)
        for tensor in self._tensors:
            tensor.put_back()
        for generator, state in self._generators:
            _set_generator(generator, state)
        _set_random(self._random)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def seed_all(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch. Of devices those alone that are in use: torch.manual_seed would leave
    the seed behind for a device that is first used later, in the place of the loop's own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.xpu.is_initialized():
        torch.xpu.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _refill(container: Any, members: Any) -> None:
    """Gives a container the very members that it had; one that has them is not touched."""
    if isinstance(container, dict):
        if list(container) == list(members) and all(container[key] is members[key] for key in members):
            return
        container.clear()
        container.update(members)
    elif len(container) != len(members) or any(a is not b for a, b in zip(container, members, strict=True)):
        container.clear()
        container.update(members) if isinstance(container, set) else container.extend(members)


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


def _random_state() -> tuple[Any, Any, Tensor, list[Tensor]]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), on_devices


def _set_random(state: tuple[Any, Any, Tensor, list[Tensor]]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
