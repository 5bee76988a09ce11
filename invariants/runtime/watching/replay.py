"""A kept forward of the loop as the active probes take it: run again with inputs edited, and nothing left behind.

To be used inside `Captured.undisturbed`; `jitter` is undone by `calm`, which has to be called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.spec import Spec
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.probed import Call
from karat.invariants.runtime.preflight.trees import Path
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.interrupts import from_signal

MOST_JITTERED = 1 << 24
"""Parameters, in elements, that are moved and put back by the probes; a larger model is probed as it is."""
JITTER, LEAST_JITTER = 0.1, 0.02


class Replay:
    """A `Probed` of the module that the loop called. Forwards run uncompiled, on copies of the inputs."""

    def __init__(self, captured: Captured, spec: Spec, trainable: dict[str, nn.Parameter]) -> None:
        self.captured, self.spec, self.trainable = captured, spec, trainable
        self.model = self.network = captured.module
        self.batch: Any = (captured.args, captured.kwargs)
        self.notes: dict[str, Any] = {}
        self.jittered = False
        self._path = captured.main
        self._autocast = not captured.autocast
        self._moved: list[tuple[Tensor, Tensor]] = []

    def forward(
        self, edits: Mapping[Path, Tensor] | None = None, *, training: bool = False, seed: int = 0,
        watched: Mapping[str, nn.Module] | None = None, seen: Callable[[str, Any, Any], None] | None = None,
    ) -> Call | None:  # fmt: skip
        """One forward. Infinities in the output, as of masked classes, count as 0; NotRun where it is not a number."""
        given = {path: t.detach().clone() for path, t in self.captured.inputs.items()}
        given.update(edits or {})
        hooks = [
            module.register_forward_hook(_teller(name, seen)) for name, module in (watched or {}).items()
            if module is not self.model and seen is not None
        ]  # fmt: skip
        try:
            outputs = self._again(given, self._mode(training), seed)
        finally:
            for hook in hooks:
                hook.remove()
            self.captured.rewind()  # modes and buffers: each forward starts from the same
        output = outputs.get(self._path) if self._path is not None else None
        if output is not None:
            if bool(output.isnan().any()):
                raise NotRun("the output of a replay is not a number")
            output = torch.where(output.isinf(), 0.0, output)
        return Call(self.captured.args, self.captured.kwargs, output, tuple(outputs.values()))

    def _again(self, given: dict[Path, Tensor], training: bool | None, seed: int) -> dict[Path, Tensor]:
        """Without autocast, where it runs so: in float32 a change is told from rounding much better."""
        if self._autocast:
            return self.captured.again(given, training=training, seed=seed)
        try:
            return self.captured.again(given, training=training, seed=seed, autocast=False)
        except Exception as error:
            if from_signal(error):
                raise
            self._autocast = True
            self.captured.rewind()
            return self.captured.again(given, training=training, seed=seed)

    def outputs(self) -> dict[Path, Tensor]:
        """All outputs of one forward in the modes that there are."""
        return self.captured.again({path: t.detach().clone() for path, t in self.captured.inputs.items()})

    def _mode(self, training: bool) -> bool | None:
        """None: as it is, so that a part in eval mode, such as a frozen one, stays so in train mode."""
        return None if training and self.model.training else training

    def jitter(self) -> None:
        """Noise on every floating-point parameter, once; of a model that is too large, on none."""
        if self._moved or not self.may_jitter:
            return
        self.jittered = True
        source = torch.Generator().manual_seed(1)
        for p in self.model.parameters():
            if p.numel() and p.is_floating_point() and p.layout is torch.strided:
                self._moved.append((p, p.data.clone()))
                size = max(JITTER * float(p.data.float().square().mean().sqrt()), LEAST_JITTER)
                p.data += (torch.randn(p.shape, generator=source) * size).to(p.device, p.dtype)

    @property
    def may_jitter(self) -> bool:
        """Whether the parameters are this process's alone, and few enough to be copied."""
        held = list(self.model.parameters())
        shared = any(p.device.type == "cpu" and p.layout is torch.strided and p.is_shared() for p in held)  # type: ignore[no-untyped-call]
        return not shared and sum(p.numel() for p in held) <= MOST_JITTERED

    def calm(self) -> None:
        """Puts every parameter back, bit for bit."""
        for p, bits in self._moved:
            p.data.copy_(bits)
        self._moved = []


def _teller(name: str, seen: Callable[[str, Any, Any], None] | None) -> Callable[..., None]:
    def tell(module: nn.Module, args: Any, output: Any) -> None:
        if seen is not None:
            seen(name, args, output)

    return tell
