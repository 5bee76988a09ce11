"""The state of a run: what its objects hold, copied and compared; the global generators; attributes outside every state."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def saves(thing: Any) -> bool:
    """Whether an object can be saved and loaded."""
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def snapshot(objects: Mapping[str, Any], loss: Any) -> dict[str, Any]:
    """Every tensor and number in every state, copied; and the loss."""
    found: dict[str, Any] = {}
    for name, thing in objects.items():
        if saves(thing):
            _flatten(found, name, thing.state_dict())
    if loss is not None:
        found["the loss"] = loss.detach().clone() if isinstance(loss, Tensor) else loss
    return found


def _flatten(found: dict[str, Any], where: str, value: Any) -> None:
    if isinstance(value, Tensor):
        found[where] = value.detach().clone()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(found, f"{where}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _flatten(found, f"{where}.{place}", item)
    elif isinstance(value, (int, float, str)):
        found[where] = value


def first_difference(straight: list[dict[str, Any]], other: list[dict[str, Any]], first: int, tolerance: float) -> str:
    """The first step after which something differs, and what: the loss before states, since it comes before them."""
    for step, (a, b) in enumerate(zip(straight, other, strict=True), start=first):
        names = sorted({*a, *b}, key=lambda name: (name != "the loss", list(a).index(name) if name in a else len(a)))
        apart = [n for n in names if n not in a or n not in b or not _equal(a[n], b[n], tolerance)]
        if apart:
            name = apart[0]
            return f"step {step}: {name} is {_shown(b.get(name))} instead of {_shown(a.get(name))}, {len(apart)} differ"
    return ""


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not tolerance or not a.is_floating_point():
            return bool(torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())
                                              and torch.equal(a.isnan(), b.isnan())))  # fmt: skip
        scale = float(torch.maximum(a.abs().max(), b.abs().max())) if a.numel() else 0.0
        return bool((a - b).abs().max() <= tolerance * scale) if a.numel() else True
    if isinstance(a, float) and isinstance(b, float):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b))
    return bool(type(a) is type(b) and a == b)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):.8g}" if value.numel() == 1 else f"a tensor with sum {float(value.double().sum()):.8g}"
    return "missing" if value is None else f"{value:.8g}" if isinstance(value, float) else repr(value)


def generators() -> dict[str, Any]:
    """The states of the global generators of torch, with its devices, NumPy and Python."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": (torch.get_rng_state(), on_devices), "numpy": np.random.get_state(), "random": random.getstate(),
    }  # fmt: skip


def restore(name: str, states: Mapping[str, Any]) -> None:
    """Puts one of the global generators back."""
    if name == "torch":
        torch.set_rng_state(states["torch"][0])
        if states["torch"][1]:
            torch.cuda.set_rng_state_all(states["torch"][1])
    elif name == "numpy":
        np.random.set_state(states["numpy"])
    else:
        random.setstate(states["random"])


def _plain_attributes(thing: Any) -> dict[str, Any]:
    """Attributes of the user's own: numbers, texts, tensors outside the state, and small containers of these."""
    held = getattr(thing, "__dict__", {})
    registered = {*getattr(thing, "_parameters", {}), *getattr(thing, "_buffers", {}), *getattr(thing, "_modules", {})}
    simple = (bool, int, float, str, Tensor, np.ndarray, list, dict, tuple, torch.Generator, np.random.Generator,
              random.Random)  # fmt: skip
    return {
        key: value for key, value in held.items()
        if isinstance(value, simple) and key not in registered and not key.startswith(("_parameters", "_buffers", "_modules"))
        and not key.endswith("_hooks") and key not in ("state", "param_groups", "defaults", "training")
    }  # fmt: skip


def _holders(thing: Any) -> list[tuple[str, Any]]:
    return list(thing.named_modules()) if isinstance(thing, nn.Module) else [("", thing)]


def changed(thing: Any, fresh: Any) -> list[tuple[str, str]]:
    """(where, name) of the attributes that are not as they were made, of a module and of those below it."""
    found = []
    for (path, mine), (_, new) in zip(_holders(thing), _holders(fresh), strict=False):
        theirs = _plain_attributes(new)
        for key, value in _plain_attributes(mine).items():
            if key in theirs and not _same_attribute(value, theirs[key]):
                found.append((path, key))
    return found


def _same_attribute(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Generator):
        return bool(torch.equal(a.get_state(), b.get_state()))
    if isinstance(a, random.Random):
        return bool(a.getstate() == b.getstate())
    if isinstance(a, np.random.Generator):
        return str(a.bit_generator.state) == str(b.bit_generator.state)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _equal(a.detach(), b.detach(), 0.0)
    try:
        return bool(np.all(a == b))
    except (ValueError, RuntimeError, TypeError):
        return False


def copy_attribute(original: Any, resumed: Any, path: str, attribute: str) -> None:
    """Gives an object, or a module below it, an attribute of another one."""
    source, target = dict(_holders(original))[path], dict(_holders(resumed))[path]
    value = source.__dict__[attribute]
    target.__dict__[attribute] = value if isinstance(value, torch.Generator) else copy.deepcopy(value)
