"""Who holds what: parameters by identity, of the model, of the optimizers, and of modules that the model does not know."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.watching.naming import unwrapped

PLACES = 8
"""Modules whose members are compared in one step."""
SAMPLE = 64
"""Numbers of a parameter by which it is seen whether it moved."""


class Places:
    """The parameters and submodules of a model by place (the dictionary of a module, its members), to see cheaply that
    one was replaced, put in or taken out."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], list[Any]]] = [
            (members, list(members.values()))
            for module in unwrapped(model).modules()
            for members in (module._parameters, module._modules)
            if members
        ]

    def changed(self, step: int) -> bool:
        """Whether a place holds something else than it did; of many places, those whose turn it is."""
        places = self._places
        if len(places) > PLACES:
            start = step * PLACES % len(places)
            places = places[start : start + PLACES]
        return any(len(now) != len(were) or not all(map(is_, now.values(), were)) for now, were in places)


@dataclass
class Mark:
    """A parameter as it was: to see whether somebody moved it."""

    step: int
    version: int
    numbers: Tensor = field(repr=False)

    @classmethod
    def of(cls, parameter: Tensor, step: int) -> Mark:
        return cls(step, parameter._version, _sample(parameter))

    def moved(self, parameter: Tensor) -> bool:
        """Whether it was written to, or its numbers are others."""
        return parameter._version != self.version or not torch.equal(_sample(parameter), self.numbers)


def holds(optimizer: torch.optim.Optimizer, held: Sequence[Tensor]) -> bool:
    """Whether an optimizer holds just these, in this order."""
    groups = optimizer.param_groups
    now = groups[0]["params"] if len(groups) == 1 else [p for group in groups for p in group["params"]]
    return len(now) == len(held) and all(map(is_, now, held))


def ids_held(optimizer: torch.optim.Optimizer) -> list[int]:
    """The parameters of an optimizer, in order."""
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def others_hold(watched: Iterable[torch.optim.Optimizer]) -> set[int]:
    """What the other living optimizers of this process hold; a search through all objects, some 20 ms."""
    mine = {id(o) for o in watched}
    return {
        key for o in gc.get_objects()
        if issubclass(type(o), torch.optim.Optimizer) and id(o) not in mine and getattr(o, "param_groups", None)
        for key in ids_held(o)
    }  # fmt: skip


def unregistered(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that hang in plain lists, tuples and dictionaries of the model's modules: by where they are."""
    known = {id(p) for p in model.parameters()}
    found: dict[str, nn.Parameter] = {}
    for place, module in unwrapped(model).named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, (list, tuple, dict)):
                continue
            for where, member in _members(value):
                for inner, p in _parameters_of(member):
                    if id(p) not in known and p.requires_grad:
                        found[".".join(part for part in (place, name, where, inner) if part)] = p
    return found


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return ((str(key), member) for key, member in items)


def _parameters_of(member: Any) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(member, nn.Parameter):
        yield "", member
    elif isinstance(member, nn.Module):
        yield from member.named_parameters()


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach()
    if flat.is_contiguous():
        flat = flat.view(-1)[:: max(1, flat.numel() // SAMPLE)]
    return flat.clone()
