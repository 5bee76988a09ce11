"""RUN-22: buffers stay finite, and those of frozen modules stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import TURNS, turn
from karat.invariants.run.rule import Severity
from karat.invariants.run.run22_buffers import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain_name, unwrapped
from karat.invariants.runtime.watching.reduction import is_finite
from karat.invariants.runtime.watching.sampling import fit, norms32, spread, window

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
MOST_NORMS, MOST_READ, MOST_BUFFERS = 2, 32, 1024
LONG, MOST_TRIES = 8, 4
"""Steps after which statistics that begin anew are reported; writes by hand that are looked into."""


@dataclass
class Buffer:
    """A floating-point buffer: where it is, what it was, and what is wrong when it changes.

    still: FAIL where it is declared to stand, WARN where only its parameters are frozen, None where it may move.
    """

    name: str
    module: nn.Module
    key: str
    still: Severity | None
    version: int
    values: Tensor | None = None
    bad: bool = False
    own: tuple[int, ...] = ()
    """The counters of the module's parameters at the start."""
    early: bool = False
    """Whether it was written to between the attachment and the first step, in train mode or by the module itself."""

    @property
    def tensor(self) -> Tensor | None:
        return self.module._buffers.get(self.key)

    @property
    def norm(self) -> bool:
        return isinstance(self.module, NORMS)

    def writes(self) -> int:
        """How often it was written to. The kernels of norms write past the counter of the statistics, and count batches."""
        count, own = self.module._buffers.get("num_batches_tracked"), self.tensor
        return (own._version if own is not None else 0) + (count._version if self.norm and count is not None else 0)


class Buffers(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._still: list[Buffer] = []
        self._means: list[Buffer] = []
        self._began = False
        self._suspects: list[Buffer] = []
        self._marks: dict[str, int] = {}
        self._tries = 0

    def start(self, loop: Loop) -> None:
        root = unwrapped(loop.model)
        for path, module in root.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is None or not fit(buffer) or len(self._buffers) >= MOST_BUFFERS:
                    continue
                name = plain_name(f"{path}.{key}" if path else key)
                self._buffers.append(Buffer(name, module, key, self._to_stand(loop, name, module), 0))
                self._buffers[-1].version = self._buffers[-1].writes()
        if not self._buffers:
            loop.not_checked(RULE, "the model has no floating-point buffers")
            loop.off(self)

    def _to_stand(self, loop: Loop, name: str, module: nn.Module) -> Severity | None:
        if name in loop.spec.frozen or (isinstance(module, NORMS) and covered(name, loop.spec.frozen)):
            return Severity.FAIL
        own = list(module.parameters(recurse=False))
        if isinstance(module, NORMS) and own and not any(p.requires_grad for p in own):
            return Severity.WARN
        return None

    def look(self, loop: Loop, moment: Moment) -> None:
        if moment.index or moment.closure:
            return
        if not self._began:
            self._begin()
        if self._still:
            self._drift(loop, moment.step)
        if self._means and self._tries < MOST_TRIES:
            self._reset(loop, moment)
        dense = loop.dense(moment.step)
        if dense:
            due = [b for b in self._buffers if not b.bad]
        else:
            due = [self._means[n] for n in window(len(self._means), MOST_NORMS, turn(moment.step))]
        pairs = [(b, t) for b in due if (t := b.tensor) is not None and t.device.type != "meta"]
        if pairs and len({t.device for _, t in pairs}) == 1:
            given = [t for _, t in pairs]
            loop.transfer.ask(norms32(given), partial(self._answered, [b for b, _ in pairs]))

    def _begin(self) -> None:
        """Before the first step: what is not finite now may be so; what is to stand is kept."""
        self._began = True
        for b in self._buffers:
            tensor = b.tensor
            if tensor is None:
                continue
            b.bad = not is_finite(tensor)
            if b.still is not None:
                b.early = b.writes() != b.version and (not b.norm or b.module.training)
                b.own = tuple(p._version for p in b.module.parameters(recurse=False))
                b.values, b.version = spread(tensor).clone(), b.writes()
                self._still.append(b)
        means = [b for b in self._buffers if b.norm and b.key == "running_mean"]
        self._means = means or []
        self._marks = {b.name: t._version for b in means if (t := b.tensor) is not None}

    def _answered(self, buffers: list[Buffer], numbers: list[float]) -> None:
        self._suspects = [b for b, n in zip(buffers, numbers, strict=True) if not b.bad and not abs(n) < float("inf")]

    def before_step(self, loop: Loop, moment: Moment) -> None:
        suspects, self._suspects = self._suspects, []
        if moment.index:
            return
        for b in suspects:
            tensor = b.tensor
            if tensor is None or is_finite(tensor):
                continue
            nan, b.bad = bool(tensor.isnan().any()), True
            if b.norm or nan:  # else a mask of infinities, made late
                loop.judge(RULE, moment.step, RULE.margin(1, 0), partial(_not_finite, b, tensor, nan, moment.step))
        if not suspects:
            loop.held_for(RULE, moment.step)

    def _drift(self, loop: Loop, step: int) -> None:
        still = self._still
        moved = []
        for n in range(len(still)) if loop.dense(step) else window(len(still), MOST_READ, turn(step)):
            b, tensor = still[n], still[n].tensor
            if b.values is None or tensor is None or b.writes() == b.version:
                continue
            b.version = b.writes()
            now = spread(tensor) if fit(tensor) else None
            if now is None or now.shape != b.values.shape or now.device != b.values.device:
                continue
            if not torch.equal(now, b.values) and bool(now.isfinite().all()):
                moved.append(b)
        loud = [b for b in moved if b.still is Severity.FAIL]
        quiet = [b for b in moved if b.still is Severity.WARN and b.module.training and _stands(b)]
        for found, severity in ((loud, Severity.FAIL), (quiet, Severity.WARN)):
            if found:
                self._drifts(loop, step, found, severity)

    def _drifts(self, loop: Loop, step: int, found: list[Buffer], severity: Severity) -> None:
        first = found[0]
        for b in found:
            b.values = None
        since = 0 if first.early and step <= 1 else step
        mode = "train" if first.module.training else "eval"
        how = "its norm is in train mode" if first.norm and first.module.training else f"written to in {mode} mode"
        what = "is declared frozen" if severity is Severity.FAIL else "belongs to a norm whose parameters are frozen"
        loop.judge(
            RULE, since, RULE.margin(len(found), 0),
            lambda: {
                "message": f"{first.name} {what}, and drifts: {how}",
                "where": first.name, "severity": severity,
                "evidence": f"{len(found)} buffers changed, seen before step {step}; .eval() of the frozen part stops it",
            },
        )  # fmt: skip

    def _reset(self, loop: Loop, moment: Moment) -> None:
        """Statistics written to by something else than their norm, which count from nothing again, under a norm whose own
        parameters were not set anew."""
        for n in window(len(self._means), MOST_NORMS, turn(moment.step)):
            b, tensor = self._means[n], self._means[n].tensor
            if tensor is None or tensor._version == self._marks.get(b.name):
                continue
            self._marks[b.name] = tensor._version
            self._tries += 1
            taken = moment.step - loop.first
            counted = b.module._buffers.get("num_batches_tracked")
            weight = getattr(b.module, "weight", None)
            if counted is None or taken < LONG or not isinstance(weight, Tensor) or not b.module.training:
                continue
            again = int(counted)
            if again > 2 * moment.forwards or 2 * again > taken or bool((weight == 1).all()):
                continue
            self._tries = MOST_TRIES
            loop.judge(
                RULE, moment.step, RULE.margin(1, 0),
                lambda b=b, again=again, taken=taken: {  # type: ignore[misc]
                    "message": f"the running statistics of {b.name.rpartition('.')[0]} were reset after {taken} steps: they "
                    f"have seen {again} batch{'es' * (again > 1)} since",
                    "where": b.name, "severity": Severity.WARN,
                    "evidence": "num_batches_tracked began again, while the norm's own weight did not",
                },
            )  # fmt: skip
            return

    def drop(self) -> None:
        self._buffers, self._still, self._means, self._suspects = [], [], [], []


def _not_finite(b: Buffer, tensor: Tensor, nan: bool, step: int) -> dict[str, Any]:
    why = ": a batch that was not finite went through it" if b.norm else ""
    return {
        "message": f"{b.name} is {'NaN' if nan else 'infinite'} since step {step}{why}",
        "where": b.name, "severity": Severity.FAIL if b.norm else Severity.WARN,
        "evidence": f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} numbers; it was finite before",
    }  # fmt: skip


def _stands(b: Buffer) -> bool:
    """Whether the parameters of a norm that moves its statistics are not moved otherwise, as those of a target network."""
    own = list(b.module.parameters(recurse=False))
    return b.own == tuple(p._version for p in own) and not any(p.requires_grad or p.grad is not None for p in own)
