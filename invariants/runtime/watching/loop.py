"""The loop that is watched: its model and optimizers under their names, what was declared, where the run is, what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karat.core.policy import Policy
from karat.invariants.run import cadence
from karat.invariants.run.spec import Spec, covered
from karat.invariants.runtime.monitor import RowSink
from karat.invariants.runtime.watching.attached import Attached
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.findings import Findings
from karat.invariants.runtime.watching.naming import named_parameters
from karat.invariants.runtime.watching.transfer import Transfer

if TYPE_CHECKING:
    from karat.invariants.runtime.watching.anchors import Anchor

DENSE = 3
"""First steps, in which everything is looked at."""
MANY = 64
"""Forwards without a step after which no check is left out at any."""

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any], tuple[tuple[str, torch.dtype], ...]]
"""Module, arguments and autocast of a forward."""


@dataclass(slots=True)
class Forwards:
    """The forwards of a loop, as the hooks on its modules see them, which hold nothing else of the loop.

    count: those in which gradients were on: of the model, or of the part that was called most often. call: the last of them
    since the last step. brief: whether checks are told of none but these; untold: how many they were not told of since then.
    evaluated: forwards of modules in eval mode without gradients.
    """

    count: int = 0
    call: Call | None = None
    brief: bool = False
    untold: int = 0
    evaluated: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter that an optimizer holds: its name ("" where it is not the model's), and its group."""

    name: str
    parameter: Tensor
    group: int


class Loop(Findings):
    """Everything that checks share. `step` is the number of optimizer steps that were taken, of the busiest optimizer."""

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], spec: Spec, policy: Policy,
                 every: int, say: Callable[[str], None], ledger: RowSink | None, first: int = 0) -> None:  # fmt: skip
        super().__init__(spec, policy, say, ledger, first)
        self.model, self.optimizers, self.every = model, tuple(optimizers), every
        self.scheduler: Any = None
        self.scaler: Any = None
        self.ema: nn.Module | None = None
        self.replicas: tuple[nn.Module, ...] = ()
        self.attached = Attached()
        """The schedulers and loss scalers, once they were looked for; see checks/rates.py."""
        self.transfer = Transfer()
        self.early = False
        """Whether the run ended before its declared total: on purpose, or by an exception of the loop's own."""
        self.so_far = Forwards()
        self.applied = 0
        """How many forwards there had been when the last step was taken."""
        self.always: dict[int, list[int]] = {}
        """Of each optimizer the indices of gradients whose norms are read at every step; see checks/freshness.py."""
        self.anchors: Mapping[int, Sequence[Anchor]] = {}
        """Of each optimizer the parameters whose gradients are followed by hooks; see checks/freshness.py."""
        self.taken = [first] * len(self.optimizers)
        """Steps of each optimizer so far."""
        self.forwards_at = [0] * len(self.optimizers)
        """How many forwards there had been when each took its last step."""
        self.ended = 0.0
        """When the last step ended, by time.perf_counter."""
        self._wanted = -1
        """A step in which what takes turns is looked at for a reason."""
        self.betweens: list[Any] = []
        """What is asked between two looks, of each optimizer; see between.py."""
        self.captured: Captured | None = None
        """The forward of this step, in the steps in which it is kept; see capture.py."""
        self._capture_next = True
        self.fingerprint: dict[str, str] = {}
        """What the run started from: the weights, the first batch. RUN-45 compares runs by it."""
        self.news = ""
        """What changed of the forward since it was probed; the probes look at it again. See checks/changes.py."""
        self.began = time.perf_counter()
        self.loaded = self.restored = -1
        """Steps before which the model, and an optimizer, last loaded a state; see checks/moments.py."""
        self.renamed = 0
        """How often names and holdings were read; another number: indices into `held` mean other parameters."""
        self.rename()

    def rename(self) -> None:
        """Reads names and holdings anew: parameters by name, names by identity, what each optimizer holds."""
        self.renamed += 1
        self.parameters = named_parameters(self.model)
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.held = [
            [Held(self.names.get(id(p), ""), p, g) for g, group in enumerate(o.param_groups) for p in group["params"]]
            for o in self.optimizers
        ]

    def forget(self) -> None:
        """Lets go of the model, the optimizers and all tensors."""
        self.model, self.optimizers, self.held = nn.Module(), (), []
        self.parameters, self.names, self.always, self.anchors = {}, {}, {}, {}
        self.scheduler = self.scaler = self.ema = None
        self.replicas = ()
        self.attached = Attached()
        self.transfer.clear()
        self.captured = self.call = None
        self.betweens = []

    @property
    def forwards(self) -> int:
        """Forwards so far in which gradients were on."""
        return self.so_far.count

    @property
    def call(self) -> Call | None:
        """The last forward with gradients since the last step."""
        return self.so_far.call

    @call.setter
    def call(self, call: Call | None) -> None:
        self.so_far.call = call

    @property
    def capture_next(self) -> bool:
        """Set by a check that wants the next forward to be kept."""
        return self._capture_next

    @capture_next.setter
    def capture_next(self, wanted: bool) -> None:
        self._capture_next = wanted
        if wanted:
            self.so_far.brief = False

    def trainable(self) -> dict[str, nn.Parameter]:
        """Those that ask for a gradient and are not declared frozen."""
        frozen = self.spec.frozen
        return {n: p for n, p in self.parameters.items() if p.requires_grad and not covered(n, frozen)}

    def dense(self, step: int) -> bool:
        """Whether everything is looked at in this step: in the first few, and every K."""
        return step - self.first < DENSE or step % self.every == 0

    def looked(self, step: int) -> bool:
        """Whether the outputs are looked at in this step: see LOOKS in run/cadence.py."""
        light = step % cadence.LIGHT == 0
        return (light and (step <= cadence.SETTLED or step & (step - 1) == 0)) or self.dense(step)

    def stir(self, *, turn: bool = False) -> None:
        """Has the checks that are asked in every step asked in full at the next. turn: those that take turns too."""
        if turn:
            self._wanted = self.step
        self.so_far.brief = False
        for between in self.betweens:
            between.until = 0

    def next_look(self, step: int) -> int:
        """The first step from this one on in which more is asked than between two looks."""
        if not self.between(step):
            return step
        every = self.every
        later = [s for s in (self._wanted, self.spec.window - 1) if s >= step]
        # the steps in which the outputs are looked at are all of these, or of those in which what takes turns is
        return min(cadence.next_asked(step), -(-step // every) * every, *later)

    def between(self, step: int) -> bool:
        """Whether the checks that are `spaced` are left out in this step."""
        due = step == self._wanted or step + 1 == self.spec.window
        return not (due or cadence.asked(step) or self.looked(step))
