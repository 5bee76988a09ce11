"""A state is a tree: its tensors go to safetensors, the rest to strict JSON that reads back equal, types included.

JSON has no tuple, no NaN, no integer key and no array; each is written as a table with one key that begins with "$".
Nothing is ever unpickled: what the tree may hold is listed here, and anything else is refused when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def split(tree: Any) -> tuple[JSON, dict[str, Tensor]]:
    """(JSON, tensors by dotted name) of a tree of dicts, lists, tuples, numbers, strings, arrays and tensors.

    Tensors are detached, not copied. TypeError for anything else, with its place in the tree.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, (), tensors), tensors


def join(record: JSON, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `split` was given. KeyError, TypeError or ValueError for a record that no `split` wrote."""
    if isinstance(record, list):
        return [join(item, tensors) for item in record]
    if not isinstance(record, dict):
        return record
    tag = next(iter(record), "")
    if not tag.startswith("$"):
        return {key: join(value, tensors) for key, value in record.items()}
    if len(record) != 1:
        raise ValueError(f"a tag beside other keys: {sorted(record)}")
    return _untag(tag, record[tag], tensors)


def _untag(tag: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match tag:
        case "$tensor":
            return tensors[value]
        case "$tuple":
            return tuple(join(item, tensors) for item in value)
        case "$items":
            return {join(key, tensors): join(item, tensors) for key, item in value}
        case "$float":
            return _FLOATS[value]
        case "$array":
            return np.array(value["values"], dtype=np.dtype(value["dtype"])).reshape(value["shape"])
    raise ValueError(f"unknown tag {tag}")


def _encode(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> JSON:
    if value is None or type(value) in (bool, int, str):
        return value  # type: ignore[no-any-return]
    if isinstance(value, float):  # NumPy's float64 too, as the equal Python float
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Tensor):
        return {"$tensor": _put(value, place, tensors)}
    if type(value) is list:
        return [_encode(item, (*place, str(k)), tensors) for k, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [_encode(item, (*place, str(k)), tensors) for k, item in enumerate(value)]}
    if isinstance(value, Mapping):
        return _encode_mapping(value, place, tensors)
    if isinstance(value, np.ndarray) and value.dtype.kind in "ui":
        return {"$array": {"dtype": value.dtype.str, "shape": list(value.shape), "values": value.ravel().tolist()}}
    where = ".".join(place) or "the top"
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} at {where} cannot be saved")


def _encode_mapping(mapping: Mapping[Any, Any], place: tuple[str, ...], tensors: dict[str, Tensor]) -> JSON:
    if all(type(key) is str and not key.startswith("$") for key in mapping):
        return {key: _encode(item, (*place, key), tensors) for key, item in mapping.items()}
    items = [
        [_encode(key, (*place, "keys"), tensors), _encode(item, (*place, str(key)), tensors)]
        for key, item in mapping.items()
    ]
    return {"$items": items}


def _put(tensor: Tensor, place: tuple[str, ...], tensors: dict[str, Tensor]) -> str:
    """Names a tensor by its place; two places that read the same ("a.b") get different names."""
    name = ".".join(place)
    while name in tensors:
        name += "'"
    tensors[name] = tensor.detach()
    return name


def stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, each once; second name -> first name of one tensor under two names). Nothing is copied.

    A tied head and its embedding are one tensor: it is written once and is one tensor again after loading. TypeError
    for a state that holds something other than dense tensors.
    """
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise TypeError(f"the model's state {name} is not a dense tensor and cannot be saved")
        storage = tensor.untyped_storage().data_ptr()
        view = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in first:
            shared[name] = first[view]
        else:
            first[view] = name
    return {name: tensor.detach() for name, tensor in state.items() if name not in shared}, shared


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, contiguous, no two in one piece of memory, as safetensors wants them."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        separate[name] = own.clone() if own.untyped_storage().data_ptr() in storages else own
        storages.add(own.untyped_storage().data_ptr())
    return separate
