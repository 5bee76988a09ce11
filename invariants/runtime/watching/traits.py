"""What a forward hangs on beside numbers: plain attributes and parts of modules, buffers that are written to, how the model is
called, and the operations that its graph has. Nothing is computed, but for sums of arguments where they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from karat.invariants.runtime.preflight.trees import leaves, spelled
from karat.invariants.runtime.watching.naming import plain_name

PLAIN = (bool, int, float, str, type(None), torch.dtype, FunctionType, BuiltinFunctionType, MethodType, nn.Module)
SCALARS = (bool, int, float, str, type(None))
MOST_SUMMED = 1 << 16
"""Elements of an argument that is summed."""
MOST_NODES = 600
ASKED = {"ScaledDot": ("_saved_is_causal", "_saved_dropout_p"), "NativeDropout": ("_saved_p",)}
"""What is asked of some nodes of a graph: numbers alone, for what they keep as tensors may have to be computed again."""


class Holder:
    """Some entries of one dictionary that are read at once."""

    __slots__ = ("_read", "keys", "name", "seen", "space")

    def __init__(self, name: str, space: Mapping[str, Any], keys: list[str]) -> None:
        self.name, self.space, self.keys = name, space, keys
        self._read = itemgetter(*keys, keys[0])  # with one name alone it would give no tuple
        self.seen = self._read(space)

    def changed(self) -> dict[str, str]:
        """Names of what is not as it was when last asked, with what it was and is; an empty dictionary for most."""
        try:
            now = self._read(self.space)
            if now == self.seen:
                return {}
        except (KeyError, RuntimeError, ValueError):  # gone, or a tensor by now
            now = tuple(self.space.get(key) for key in (*self.keys, self.keys[0]))
        found = {}
        for key, old, new in zip(self.keys, self.seen, now, strict=False):
            if old is not new and not (isinstance(old, SCALARS) and isinstance(new, SCALARS) and old == new):
                found[f"{self.name}.{key}" if self.name else key] = f"from {_said(old)} to {_said(new)}"
        self.seen = now
        return found


class Attributes:
    """Those of the modules of a model, and of the configurations that they hold."""

    def __init__(self, model: nn.Module) -> None:
        self._holders: list[Holder] = []
        self._buffers: list[tuple[str, dict[str, Tensor | None]]] = []
        known: set[int] = set()
        for path, module in model.named_modules():
            name = plain_name(path)
            self._hold(name, module.__dict__, known)
            self._hold(name, module._modules, known)
            for key, value in module.__dict__.items():
                inner = value if type(value) is dict else getattr(value, "__dict__", None)
                if type(inner) is dict and not key.startswith("_") and _configures(value):
                    self._hold(f"{name}.{key}" if name else key, inner, known)
            if module._buffers and not isinstance(module, _NormBase):
                self._buffers.append((name, module._buffers))
        self._versions = self._written()

    def _hold(self, name: str, space: Mapping[str, Any], known: set[int]) -> None:
        keys = [k for k, v in space.items() if isinstance(v, PLAIN) and isinstance(k, str) and not k.startswith("__")]
        if keys and id(space) not in known:
            known.add(id(space))
            self._holders.append(Holder(name, space, keys))

    def _written(self) -> dict[tuple[str, str], tuple[int, int]]:
        return {
            (name, key): (id(t), t._version) for name, buffers in self._buffers for key, t in buffers.items()
            if t is not None and not t.is_inference()
        }  # fmt: skip

    def changed(self) -> dict[str, str]:
        """As of each holder; and the buffers that were written to or exchanged."""
        found: dict[str, str] = {}
        for holder in self._holders:
            found.update(holder.changed())
        if self._buffers:
            now = self._written()
            if now != self._versions:
                for place, version in now.items():
                    if self._versions.get(place) != version:
                        found[".".join(filter(None, place))] = "is written to"
                self._versions = now
        return found


def _configures(value: Any) -> bool:
    """Whether it may be a configuration: a dictionary, or an object of no library's."""
    if callable(value) or isinstance(value, (nn.Module, Tensor)):
        return False
    return not type(value).__module__.startswith(("torch", "numpy", "karat"))


def _said(value: Any) -> str:
    if isinstance(value, SCALARS):
        return repr(value)[:40]
    return str(getattr(value, "__name__", type(value).__name__))


def of_call(module: nn.Module, args: Any, kwargs: Mapping[str, Any], autocast: Any) -> dict[str, Any]:
    """Trait -> value, of how a module is called: which arguments, of which types, and what is plain among them."""
    found: dict[str, Any] = {"autocast": autocast}
    for place, value in (*enumerate(args), *kwargs.items()):
        name = f"argument {place}"
        if isinstance(value, Tensor):
            found[name] = (value.dtype, value.ndim)
        elif isinstance(value, SCALARS):
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = tuple(value)
        else:
            found[name] = type(value).__name__
    return found


def of_arguments(args: Any, kwargs: Any) -> dict[str, Any]:
    """The sums of small tensors among the arguments, as of a mask that is the same in each step."""
    return {
        f"the sum of argument {spelled(path[1:])}": float(t.detach().double().nan_to_num(0.0, 1.0, -1.0).sum())
        for path, t in leaves((args, kwargs)) if 0 < t.numel() <= MOST_SUMMED and not t.is_complex()
    }  # fmt: skip


def of_graph(outputs: Iterable[Tensor]) -> dict[str, Any]:
    """How often the graph has each operation, and what is asked of some; of one that is too large, of its first nodes."""
    waiting: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(waiting)
    kinds: Counter[str] = Counter()
    while waiting and len(seen) <= MOST_NODES:
        node = waiting.pop()
        kind = type(node).__name__
        kinds[kind] += 1
        for start, names in ASKED.items():
            if kind.startswith(start):
                for name in names:
                    kinds[f"{kind} with {name.removeprefix('_saved_')} = {getattr(node, name, None)}"] += 1
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return {f"{kind} in the graph": count for kind, count in kinds.items()}
