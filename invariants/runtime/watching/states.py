"""What a checkpoint holds: the weights, the optimizers' and schedulers' states, its step and place in the data; and how
weights in it compare with those of a live model. Only looked at, never kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from karat.invariants.runtime.watching.fingerprint import sample
from karat.invariants.runtime.watching.naming import plain, plain_name, unwrapped

DEPTH = 4
MOST_COMPARED = 256
"""Parameters of a model that are compared."""
STEP_NAMES = ("step", "global_step")
POSITION = "position"


@dataclass
class Parts:
    """models: where -> names and tensors. optimizers, schedulers: their state dictionaries. whole: whether it is more than
    weights alone."""

    models: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    optimizers: list[Mapping[str, Any]] = field(default_factory=list)
    schedulers: list[Mapping[str, Any]] = field(default_factory=list)
    step: int | None = None
    position: float | None = None
    random: bool = False


def parts_of(state: Any) -> Parts:
    """What is found in nested mappings, lists, modules; anything else is passed over."""
    parts = Parts()
    _visit(parts, state, "", 0)
    if isinstance(state, Mapping):
        numbers = {k: v for k, v in state.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        parts.step = next((int(numbers[name]) for name in STEP_NAMES if name in numbers), None)
        parts.position = numbers.get(POSITION)
        parts.random = any(isinstance(k, str) and ("rng" in k.lower() or "random" in k.lower()) for k in state)
    return parts


def _visit(parts: Parts, value: Any, where: str, depth: int) -> None:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        if "param_groups" in value and "state" in value:
            parts.optimizers.append(value)
            return
        if "last_epoch" in value:
            parts.schedulers.append(value)
            return
        tensors = {plain_name(k): v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            parts.models[where] = tensors
        inner = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = [(str(k), v) for k, v in enumerate(value)]
    else:
        return
    if depth < DEPTH:
        for key, item in inner:
            if not isinstance(item, Tensor):
                _visit(parts, item, f"{where}.{key}" if where else key, depth + 1)


@dataclass(frozen=True)
class Likeness:
    """equal and other: names of the parameters that are, and are not, the live ones. distance: of all that was compared,
    relative to the live numbers; 0 when nothing was."""

    equal: tuple[str, ...]
    other: tuple[str, ...]
    distance: float


def live_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Plain name -> parameter, a tied one under each of its names."""
    named = unwrapped(model).named_parameters(remove_duplicate=False)
    return {plain_name(name): p for name, p in named if plain(p) and not p.is_meta}


def likeness(held: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> Likeness | None:
    """How weights in a checkpoint compare with live ones; None when they are not this model's: other names, other shapes.

    Names may have a prefix that the model's have not. Numbers that were saved in another dtype are compared in that one.
    """
    prefix = _prefix(held, live)
    if prefix is None:
        return None
    pairs = [
        (n, held[prefix + n], p) for n, p in live.items() if prefix + n in held and held[prefix + n].shape == p.shape
    ]
    if 2 * len(pairs) < len(live):
        return None
    stride = max(1, len(pairs) // MOST_COMPARED)
    equal: list[str] = []
    other: list[str] = []
    off = size = 0.0
    for name, a, b in pairs[::stride]:
        if not plain(a) or a.is_meta or not a.numel():
            continue
        saved, now = sample(a).cpu(), sample(b).cpu()
        same = torch.equal(saved, now.to(saved.dtype)) or torch.equal(saved.to(now.dtype), now)
        (equal if same else other).append(name)
        off += float((saved.double() - now.double()).square().sum())
        size += float(now.double().square().sum())
    return Likeness(tuple(equal), tuple(other), (off / size) ** 0.5 if size else 0.0)


def _prefix(held: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> str | None:
    """What stands before the model's names in those of the checkpoint; None when they do not meet."""
    if any(name in held for name in live):
        return ""
    first = next(iter(live), "")
    if not first:
        return None
    found = [name[: -len(first)] for name in held if name.endswith(f".{first}")]
    return next((p for p in found if sum(p + n in held for n in live) * 2 >= len(live)), None)


def loaded_into(held: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has the moments that a checkpoint has of it; true when the checkpoint has none."""
    saved = held.get("state") or {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    looked = 0
    for index, moments in saved.items():
        if not isinstance(index, int) or not isinstance(moments, Mapping) or looked >= 8:
            continue
        if index >= len(parameters):
            return False
        now = optimizer.state.get(parameters[index], {})
        for name, value in moments.items():
            if not isinstance(value, Tensor):
                continue
            looked += 1
            mine = now.get(name)
            if not isinstance(mine, Tensor) or mine.shape != value.shape:
                return False
            a, b = sample(value).cpu(), sample(mine).cpu()
            if not torch.equal(a.to(b.dtype), b):
                return False
    return True


def keeps_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has anything to remember: plain SGD has nothing."""
    return not isinstance(optimizer, torch.optim.SGD) or any(group.get("momentum") for group in optimizer.param_groups)


def schedulers_of(optimizers: tuple[torch.optim.Optimizer, ...], given: Any) -> list[LRScheduler]:
    """The schedulers of these optimizers: that which was given, and those that are alive."""
    alive = [o for o in gc.get_objects() if issubclass(type(o), LRScheduler)]
    own = {id(o) for o in optimizers}
    found = {id(s): s for s in alive if id(getattr(s, "optimizer", None)) in own}
    inner = {id(i) for s in found.values() for i in getattr(s, "_schedulers", ())}
    outer = [s for key, s in found.items() if key not in inner]
    return outer + ([given] if isinstance(given, LRScheduler) and id(given) not in found else [])


def elsewhere(held: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether the weights are those of another module that is alive: an average, a copy that is kept."""
    return any(
        (found := likeness(held, live_parameters(module))) is not None and not found.other
        for module in _alive_like(unwrapped(model))
    )


def _alive_like(model: nn.Module) -> Iterator[nn.Module]:
    count = sum(1 for _ in model.parameters())
    for other in [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]:
        if other is not model and sum(1 for _ in other.parameters()) == count:
            yield other
