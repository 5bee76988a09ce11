"""Tensors inside what a loop passes around: tuples, lists, dictionaries, dataclasses; found and replaced by path."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Path = tuple[str, ...]
PLAIN = (Tensor, nn.Parameter)
"""Tensors that hold no others."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The tensors of a nested value with their paths, in order; anything that is no container of these holds none.

    Logits that a dataclass makes when they are asked for (a cached property whose name begins so) are asked for.
    """
    if isinstance(value, Tensor):
        yield path, value
        if type(value) in PLAIN:
            return
    items = _items(value)
    for key, item in items if type(value) in (tuple, list, dict) else (*items, *_lazy_logits(value)):
        yield from leaves(item, (*path, key))


def replaced(value: Any, by: Mapping[Path, Tensor], path: Path = ()) -> Any:
    """The same nested value with the tensors at some paths replaced; the value itself is left as it is."""
    if path in by:
        return by[path]
    items = {key: replaced(item, by, (*path, key)) for key, item in _items(value)}
    if not items or not any(replacement[: len(path)] == path for replacement in by):
        return value
    if isinstance(value, Mapping):
        changed = copy.copy(value)
        for key in value:
            changed[key] = items[str(key)]  # type: ignore[index]
        return changed
    if isinstance(value, tuple):
        return type(value)(*items.values()) if hasattr(value, "_fields") else tuple(items.values())
    if isinstance(value, list):
        return list(items.values())
    return dataclasses.replace(value, **items)


def spelled(path: Path) -> str:
    """A path as a person reads it: `input_ids`, `0.logits`."""
    return ".".join(path) or "the tensor"


def _lazy_logits(value: Any) -> list[tuple[str, Any]]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    made = (name for name, member in vars(type(value)).items() if isinstance(member, functools.cached_property))
    return [(name, getattr(value, name)) for name in made if name.startswith("logits")]


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(place), item) for place, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []
