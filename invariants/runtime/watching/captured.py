"""One forward of the loop, kept until its step is over: arguments, outputs, their gradients; and the same forward run again.

Run again, nothing is left behind: buffers, modes, attributes of modules and generators are put back bit for bit.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.keep import Kept, seed_all
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.trees import Path, leaves, replaced
from karat.invariants.runtime.watching.interrupts import passing
from karat.invariants.runtime.watching.reading import MOST, Reading
from karat.invariants.runtime.watching.refusal import refusal, undoable, unnoticed

MOST_RUNS = 128
"""Times that the forward of one step is run again at most, by all checks together."""
REPLAYS: list[int] = []
"""The threads in which a forward is run again: one at a time, for they seed the generators that all share."""
_ONE = threading.RLock()


def replaying() -> bool:
    """Whether a forward is one that the guards run, not the loop."""
    return bool(REPLAYS) and threading.get_ident() in REPLAYS


@dataclass
class Captured:
    """The first forward with gradients since the last step. outputs: path -> floating-point output, detached; gradients:
    path -> what came back to it. `training`: the root's mode."""

    root: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: dict[Path, Tensor]
    training: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    gradients: dict[Path, Tensor] = field(default_factory=dict)
    readings: dict[Path, Reading] = field(default_factory=dict)
    """What the gradients tell of the loss, of the outputs that it is a cross-entropy of; see checks/losses.py."""
    most: int = MOST
    """Elements of an output that are read."""
    runs: int = 0
    """How often it was run again."""
    _kept: Kept | None = field(default=None, repr=False)

    @property
    def inputs(self) -> dict[Path, Tensor]:
        """The tensors among the arguments."""
        return dict(leaves((self.args, self.kwargs)))

    @property
    def main(self) -> Path | None:
        """The output that is called logits, else the largest that got a gradient, else the largest."""
        if not self.outputs:
            return None
        named = [path for path in self.outputs if "logits" in path]
        several = named or [path for path in self.outputs if path in self.gradients] or list(self.outputs)
        return max(several, key=lambda path: self.outputs[path].numel())

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """For forwards, and changes of buffers and modes, that are to leave no trace. Parameters are not kept: who
        changes one puts it back. NotRun where some trace would be left; see refusal.py."""
        why = refusal(self.module)
        if why:
            raise NotRun(why)
        with _ONE:
            kept = Kept(self.module, (), (self.args, self.kwargs), parameters=False)
            why = undoable(kept)
            if why:
                raise NotRun(why)
            REPLAYS.append(threading.get_ident())
            self._kept = kept
            try:
                with unnoticed(), torch.no_grad():
                    yield
            finally:
                REPLAYS.pop()
                self._kept = None
                kept.put_back()

    def let_go(self) -> None:
        """After its step: nothing of it is held, whoever still holds this."""
        self.args, self.kwargs = (), {}
        self.outputs, self.gradients, self.readings = {}, {}, {}

    def rewind(self) -> None:
        """Inside `undisturbed`: makes everything what it was at its start, so that a forward that counts its calls, or
        remembers the last one, does the same again."""
        if self._kept is not None:
            self._kept.put_back()

    def again(
        self, edits: Mapping[Path, Tensor] | None = None, *, training: bool | None = None, seed: int = 0,
        autocast: bool = True,
    ) -> dict[Path, Tensor]:  # fmt: skip
        """The outputs of the same forward with some inputs replaced, in eval or train mode (None: as modules are), with
        the generators seeded; to be called inside `undisturbed`. autocast: as the loop had it, or off."""
        if training is not None:
            self.module.train(training)
        self.runs += 1
        if self.runs > MOST_RUNS:
            raise NotRun(f"the forward was run again {MOST_RUNS} times, which is enough for one step")
        seed_all(seed)
        args, kwargs = replaced((self.args, self.kwargs), dict(edits or {}))
        with contextlib.ExitStack() as stack:
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=autocast))
            output = passing(lambda: self.module(*args, **kwargs))
        return floating(output)


def floating(output: Any) -> dict[Path, Tensor]:
    """The floating-point tensors of an output, detached."""
    return {path: t.detach() for path, t in leaves(output) if t.is_floating_point()}


def autocast_on() -> bool:
    """Whether autocast is on for any device type."""
    return torch._C._is_any_autocast_enabled()


def autocast_now() -> tuple[tuple[str, torch.dtype], ...]:
    """The device types for which autocast is on, with their dtypes."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind))
