"""Hooks on modules that stay behind: a copy of the module, or a file that it is saved in whole, has none of them.

Without this `torch.save(model)` would fail on the hook, and copy.deepcopy(model), as for an average of the weights, would
give the copy's forwards to the guards too.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_OWN: weakref.WeakSet[Callable[..., None]] = weakref.WeakSet()
_AFTER, _BEFORE, _LOADED = "_forward_hooks", "_forward_pre_hooks", "_load_state_dict_post_hooks"
_LOADING, _SAVING = "_load_state_dict_pre_hooks", "_state_dict_pre_hooks"
_HOLDING = (_AFTER, _BEFORE, _LOADED, _LOADING, _SAVING)
_HOOKS = (*_HOLDING, f"{_AFTER}_with_kwargs", f"{_BEFORE}_with_kwargs", f"{_AFTER}_always_called")
_STATE, _SCRIPTED = "__getstate__", "__prepare_scriptable__"


class Unsaved:
    """A hook on a module, put on by one of the functions below; `remove` takes it off."""

    def __init__(self, module: nn.Module, hook: Callable[..., None], handle: Any) -> None:
        _OWN.add(hook)
        self._module, self._handle = weakref.ref(module), handle
        if _STATE not in module.__dict__:
            module.__dict__[_STATE] = _state_of(self._module)
            module.__dict__[_SCRIPTED] = _unhooked(self._module)

    def remove(self) -> None:
        """Takes the hook off; the module is then as it was found."""
        self._handle.remove()
        module = self._module()
        if module is not None and not _own(module.__dict__):
            module.__dict__.pop(_STATE, None)
            module.__dict__.pop(_SCRIPTED, None)


def before_forward(module: nn.Module, hook: Callable[..., None]) -> Unsaved:
    """hook(module, args, kwargs) before each forward."""
    return Unsaved(module, hook, module.register_forward_pre_hook(hook, with_kwargs=True))


def after_forward(module: nn.Module, hook: Callable[..., None]) -> Unsaved:
    """hook(module, args, kwargs, output) after each forward; the output of one that raised is None."""
    return Unsaved(module, hook, module.register_forward_hook(hook, with_kwargs=True, always_call=True))


def after_loading(module: nn.Module, hook: Callable[..., None]) -> Unsaved:
    """hook(module, keys) after each load_state_dict."""
    return Unsaved(module, hook, module.register_load_state_dict_post_hook(hook))  # type: ignore[no-untyped-call]


def before_loading(module: nn.Module, hook: Callable[..., None]) -> Unsaved:
    """hook(module, state, prefix, …) before each load_state_dict."""
    return Unsaved(module, hook, module.register_load_state_dict_pre_hook(hook))  # type: ignore[no-untyped-call]


def before_saving(module: nn.Module, hook: Callable[..., None]) -> Unsaved:
    """hook(module, prefix, keep_vars) before each state_dict."""
    return Unsaved(module, hook, module.register_state_dict_pre_hook(hook))  # type: ignore[no-untyped-call]


def _own(state: Mapping[str, Any]) -> set[int]:
    """The numbers under which the hooks of the guards are held."""
    return {id_ for name in _HOLDING for id_, hook in state.get(name, {}).items() if _bare(hook) in _OWN}


def _bare(hook: Any) -> Any:
    """A hook without what torch wraps it in to hand it its module."""
    return getattr(hook, "hook", hook)


def _state_of(reference: weakref.ref[nn.Module]) -> Callable[[], Any]:
    """What pickle and copy ask an object for its state by; as the class itself answers, without the hooks."""

    def state() -> Any:
        module = reference()
        given = getattr(type(module), _STATE)(module)
        if not isinstance(given, dict):
            return given
        own = _own(given)
        kept = {name: value for name, value in given.items() if name not in (_STATE, _SCRIPTED)}
        for name in _HOOKS:
            if name in kept:
                kept[name] = OrderedDict((id_, value) for id_, value in kept[name].items() if id_ not in own)
        return kept

    return state


def _unhooked(reference: weakref.ref[nn.Module]) -> Callable[[], nn.Module]:
    """What torch.jit.script asks a module for: it would compile the hooks. The same module without them, not a copy of
    anything else."""

    def prepared() -> nn.Module:
        module = reference()
        assert module is not None
        own = getattr(type(module), _SCRIPTED, None)
        if own is not None:
            return own(module)  # type: ignore[no-any-return]
        bare = module.__class__.__new__(module.__class__)
        bare.__dict__.update(_state_of(reference)())
        bare.__dict__["_modules"] = dict(module._modules)  # script writes into it
        return bare

    return prepared
