"""Which calls of the user's code are the loop's own, and what a hook of the guards does when it fails: nothing but say so."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watching.captured import REPLAYS, replaying
from karat.invariants.runtime.watching.interrupts import from_signal

if TYPE_CHECKING:
    from karat.invariants.runtime.watching.between import Between
    from karat.invariants.runtime.watching.check import Check
    from karat.invariants.runtime.watching.loop import Loop

TRACING = ("FakeTensorMode", "ProxyTorchDispatchMode", "FunctionalTensorMode")

compiling = torch.compiler.is_dynamo_compiling
"""Constant in compiled code; other tracing has modes, see `unheard`. Its sister takes twice as long."""
_graph_task, _tracing, _modes = (
    torch._C._current_graph_task_id,
    torch._C._get_tracing_state,
    torch._C._len_torch_dispatch_stack,
)
_level = torch._C._functorch.maybe_current_level


def unheard() -> bool:
    """Whether a forward is none of the loop's: compiled, exported, traced, of a functional transform (vmap, grad), of the
    guards, or done again in a backward pass."""
    return bool(
        compiling()
        or (REPLAYS and replaying())
        or _graph_task() != -1
        or _tracing() is not None
        or _level() is not None
        or (_modes() and _traced())
    )


def again() -> bool:
    """What of `unheard` a loop meets by itself, beside compiled code: its forward run by the guards, or done again in a
    backward pass."""
    return bool(REPLAYS or _graph_task() != -1)


def _traced() -> bool:
    return any(type(mode).__name__ in TRACING for mode in _get_current_dispatch_mode_stack())


def harmless(loop: Loop, check: Check, function: Callable[..., None]) -> Callable[..., None]:
    """A hook for autograd or modules: what it raises takes its check off duty, and the backward or forward goes on."""
    running, asked = (
        weakref.ref(loop),
        weakref.ref(check),
    )  # a parameter that holds the hook holds nothing of the guards

    def hook(*given: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            function(*given)
        except Exception as error:
            if from_signal(error):
                raise
            there, failed = running(), asked()
            if there is not None and failed is not None:
                there.broke(failed, "a hook", error)

    return hook


class Shield:
    """Around the hooks of one optimizer.step: what the guards' own frame raises ends the guards, and the step goes on; so
    does a step that several threads take at once. While the step is compiled the hooks are left out: compiled code has
    none of them."""

    def __init__(self, broke: Callable[[Exception], None], between: Between) -> None:
        self._broke, self._thread, self._between = broke, 0, between

    def before(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook before the step."""

        between = self._between

        def step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
            if compiling():
                return None
            try:
                if between.before(optimizer, args, kwargs):
                    return None
            except Exception as error:
                if from_signal(error):
                    raise
            thread = threading.get_ident()
            if self._thread and self._thread != thread:
                self._broke(RuntimeError("optimizer.step is called by several threads at once"))
            self._thread = thread
            return self._safely(hook, optimizer, args, kwargs)

        return step

    def after(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook after it."""

        between = self._between

        def stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if compiling():
                return
            self._thread = 0
            if not between.quiet:
                self._safely(hook, optimizer, args, kwargs)
                return
            try:
                between.after()
            except Stopped:
                raise
            except Exception as error:
                if from_signal(error):
                    raise
                self._broke(error)

        return stepped

    def _safely(self, hook: Callable[..., Any], *given: Any) -> Any:
        try:
            return hook(*given)
        except Stopped:
            raise
        except Exception as error:
            if from_signal(error):
                raise
            self._broke(error)
            return None


def take_off(handle: Any) -> None:
    """Takes a hook off. While optimizer.step runs its hooks, one that says finish() among them, the place is kept, and what
    is there does nothing: torch goes through them as they are."""
    places = getattr(handle, "hooks_dict_ref", lambda: None)()
    if places is not None and _stepping():
        if handle.id in places:
            places[handle.id] = _nothing
        return
    handle.remove()


def _nothing(*given: Any) -> None:
    """In place of a hook that was taken off while hooks were run."""


def _stepping() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename.endswith("optimizer.py"):
            return True
        frame = frame.f_back
    return False
