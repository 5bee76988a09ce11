"""Forward hooks that stay behind: a copy of the module, or a file that it is saved in whole, has none of them.

Without this `torch.save(model)` would fail on the hook, and copy.deepcopy(model), as for an average of the weights, would
give the copy's forwards to the guards too.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

_OWN: weakref.WeakSet[Callable[..., None]] = weakref.WeakSet()
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs")
_STATE = "__getstate__"


class Unsaved:
    """A forward hook, with keyword arguments, on a module; `remove` takes it off."""

    def __init__(self, module: nn.Module, hook: Callable[..., None]) -> None:
        _OWN.add(hook)
        self._module = weakref.ref(module)
        self._handle = module.register_forward_hook(hook, with_kwargs=True)
        if _STATE not in module.__dict__:
            module.__dict__[_STATE] = _state_of(self._module)

    def remove(self) -> None:
        """Takes the hook off; the module is then as it was found."""
        self._handle.remove()
        module = self._module()
        if module is not None and not any(hook in _OWN for hook in module._forward_hooks.values()):
            module.__dict__.pop(_STATE, None)


def _state_of(reference: weakref.ref[nn.Module]) -> Callable[[], Any]:
    """What pickle and copy ask an object for its state by; as the class itself answers, without the hooks."""

    def state() -> Any:
        module = reference()
        given = getattr(type(module), _STATE)(module)
        if not isinstance(given, dict):
            return given
        own = {id_ for id_, hook in given.get("_forward_hooks", {}).items() if hook in _OWN}
        kept = {name: value for name, value in given.items() if name != _STATE}
        for name in _HOOKS:
            if name in kept:
                kept[name] = OrderedDict((id_, value) for id_, value in kept[name].items() if id_ not in own)
        return kept

    return state
