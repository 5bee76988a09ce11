"""Everything that a probe may move, kept and put back bit for bit: tensors keep their storage, objects their identity.

Kept are the parameters of model and optimizers with their gradients and requires_grad, buffers, the attributes of
every module (train and eval mode are among them), the optimizers' states and groups, the tensors of the batch, and the
generators of Python, NumPy and torch. An attribute that is a list, set or dictionary is kept with its members, and so is
an object of a class from the package of one of the modules. Outside of them what the code of the forwards mentions is kept:
globals, cells of closures, attributes of classes; see touched.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.touched import Touched, opaque, package
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.preflight.walk import Walk, set_generator, whole


class _KeptTensor:
    """One tensor: its storage and bits; for a leaf also its gradient and whether it asks for one."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._storage = tensor, tensor.data  # no version is counted up: a graph may be alive
        self._bits, self._version = self._storage.clone(), None if tensor.is_inference() else tensor._version
        self._asks = tensor.requires_grad if tensor.is_leaf else None
        self._grad = tensor.grad if tensor.is_leaf else None
        self._grad_bits = None if self._grad is None else self._grad.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        if self._tensor.data_ptr() != self._storage.data_ptr() or self._tensor.shape != self._storage.shape:
            self._tensor.data = self._storage
        self._storage.copy_(self._bits)
        self._renumber()
        if self._asks is None:
            return
        self._tensor.requires_grad_(self._asks)
        if self._grad is not None and self._grad_bits is not None:
            self._grad.data.copy_(self._grad_bits)
        self._tensor.grad = self._grad

    def _renumber(self) -> None:
        """The counter of changes as it was: a graph that holds the tensor can still be gone back through."""
        if self._version is not None:
            torch._C._autograd._unsafe_set_version_counter((self._tensor,), (self._version,))


class Kept:
    """What model, optimizers, batch and generators are when it is made; `put_back` makes them so again, any time.

    parameters=False: of parameters only which ones there are, not their numbers, for forwards that change none.
    refusal: why not everything that a forward may change can be put back; empty where it can.
    """

    def __init__(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], batch: Any, *, parameters: bool = True
    ) -> None:
        modules = list(model.modules())
        touched = Touched(modules, _callables(batch))
        walk = Walk(parameters, frozenset(package(type(module)) for module in modules) - {"torch"}, touched.names)
        for module in modules:
            walk.holder(module)
        for optimizer in optimizers:
            walk.visit(optimizer.__dict__)
        for _, tensor in leaves(batch):
            walk.visit(tensor)
        walk.batch(batch)
        for value in touched.values:
            walk.reached(value)
        self.refusal = touched.refusal or walk.refusal
        self.names = touched.names
        self._touched, self._walk = touched, walk
        self._containers, self._generators = list(walk.containers.values()), list(walk.generators.values())
        self._held, kept = [c for c, _ in self._containers], [m for _, m in self._containers]
        self._dicts = [c for c in self._held if isinstance(c, dict)]
        self._lengths, self._members = [*map(len, kept)], [*chain.from_iterable(kept)]
        self._values = [value for m in kept if isinstance(m, dict) for value in m.values()]
        self._slots, self._arrays = list(walk.slots.values()), list(walk.arrays.values())
        self._tensors = (
            [] if self.refusal and not parameters else [_KeptTensor(t) for t in walk.tensors.values() if whole(t)]
        )
        self._random = _random_state()

    def put_back(self) -> None:
        """Restores everything; harmless when nothing moved. What cannot be restored does not keep the rest from it."""
        failed: list[Exception] = []
        for again in self._restoring():
            try:
                again()
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _untouched(self) -> bool:
        """Whether all containers have the very members that they had, told quickly: a model has some for each module."""
        try:
            return (
                [*map(len, self._held)] == self._lengths
                and all(map(is_, chain.from_iterable(self._held), self._members))
                and all(map(is_, chain.from_iterable(d.values() for d in self._dicts), self._values))
            )
        except Exception:
            return False

    def _restoring(self) -> Iterator[Callable[[], None]]:
        yield partial(_set_random, self._random)
        for generator, state in self._generators:
            yield partial(set_generator, generator, state)
        if not self._untouched():
            for container, members in self._containers:
                yield partial(_refill, container, members)
        for tensor in self._tensors:
            yield tensor.put_back
        for owner, name, value in self._slots:
            yield partial(_reset, owner, name, value)
        for array, copy in self._arrays:
            yield partial(_rewrite, array, copy)
        for (_, name), (space, value) in self._touched.globals.items():
            yield partial(_rebind, space, name, value)
        for cell, value in self._touched.cells.values():
            yield partial(_reset, cell, "cell_contents", value)
        for kind, members in self._touched.classes.items():
            yield partial(_reset_class, kind, members)


def _callables(batch: Any) -> list[Any]:
    """The functions and other things that are no containers among the arguments of a forward."""
    args, kwargs = batch if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], dict) else (batch, {})
    given = (*(args if isinstance(args, tuple) else (args,)), *kwargs.values())
    return [value for value in given if callable(value) or opaque(value)]


def seed_all(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch. Of devices those alone that are in use: torch.manual_seed would leave
    the seed behind for a device that is first used later, in the place of the loop's own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
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


def _reset(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name, owner) is not value:
        object.__setattr__(owner, name, value)


def _rewrite(array: Any, copy: Any) -> None:
    """Numbers of an array, bytes of a bytearray, as they were."""
    if isinstance(array, bytearray):
        array[:] = copy
    else:
        array[...] = copy


def _rebind(space: dict[str, Any], name: str, value: Any) -> None:
    if space.get(name, space) is not value:
        space[name] = value


def _reset_class(kind: type, members: dict[str, Any]) -> None:
    now = vars(kind)
    for name, value in members.items():
        if now.get(name, kind) is not value:
            setattr(kind, name, value)


def _random_state() -> tuple[Any, Any, Tensor, list[Tensor]]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), on_devices


def _set_random(state: tuple[Any, Any, Tensor, list[Tensor]]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
