"""Which forwards are not run again by the guards, and why; and what keeps those that are from being noticed.

The user's own forward hooks see nothing of a replay: a model that has some, or a global one is set, is not run again. Nor
is one whose code leaves something behind that cannot be put back (a file, an iterator, a tracker), or whose ranks would
wait for each other. What is printed or logged in a replay is dropped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooked
from torch.utils._python_dispatch import _disable_current_modes

from karat.invariants.runtime.preflight.keep import Kept
from karat.invariants.runtime.preflight.touched import COLLECTIVES

SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def refusal(module: nn.Module) -> str:
    """Why the forward of a module cannot be run again without risk; empty where it can, as far as its modules tell."""
    modules = list(module.modules())
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return "the model is a ScriptModule, whose state cannot be put back"
    if any(type(m).__name__ in SHARDED for m in modules) or any(hasattr(p, "to_local") for p in module.parameters()):
        return "the parameters are sharded"
    if ranks() > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in modules):
        return "forwards of the ranks wait for each other (SyncBatchNorm)"
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "the model has parameters that are not initialised"
    if any(p.is_meta for p in module.parameters()):
        return "the parameters have no numbers (meta device)"
    if _own_hooks(modules):
        return "the model carries forward hooks of its own, which a replay would set off"
    return ""


def undoable(kept: Kept) -> str:
    """Why what a forward does cannot be put back, as its code tells; empty where it can."""
    waiting = sorted(COLLECTIVES & kept.names) if ranks() > 1 else []
    if waiting:
        return f"forwards of the ranks wait for each other ({waiting[0]})"
    return kept.refusal


def ranks() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _own_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether a module has forward hooks that are not torch's, or all modules do: they may keep what they are given."""
    everywhere = (*hooked._global_forward_hooks.values(), *hooked._global_forward_pre_hooks.values())
    own = (h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    for hook in (*everywhere, *own):
        called = hook.func if isinstance(hook, functools.partial) else hook
        owner = str(getattr(called, "__module__", "") or type(called).__module__)
        if not owner.startswith(("torch.", "karat.")):
            return True
    return False


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Runs what is compiled as it was written, outside the modes that count or trace operations, and says nothing."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_disable_current_modes())
        stack.enter_context(_silent())
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What this thread prints or logs is dropped; what others do is not."""
    thread, out, error, handle = threading.get_ident(), sys.stdout, sys.stderr, logging.Logger.handle

    def dropped(logger: logging.Logger, record: logging.LogRecord) -> None:
        if threading.get_ident() != thread:
            handle(logger, record)

    sys.stdout, sys.stderr = _Dropping(out, thread), _Dropping(error, thread)
    logging.Logger.handle = dropped  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        logging.Logger.handle = handle  # type: ignore[method-assign]
        sys.stdout, sys.stderr = out, error


class _Dropping:
    """A stream that drops what one thread writes."""

    def __init__(self, stream: Any, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        written: int = self._stream.write(text)
        return written

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
