"""What the callbacks share: a spec completed with what a trainer declares, the guards of the present run, the last report."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError
from karat.core.policy import Policy
from karat.invariants.run.spec import Spec, read_spec
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watch import EVERY, Watch, watch
from karat.invariants.runtime.watching.report import WatchReport

OPTIONS = tuple(inspect.signature(watch).parameters)[2:]
"""The arguments of `watch` after the model and the optimizer, which the trainer has."""
NO_WORD = "the trainer did not say that the run ended"


@dataclass
class Inferred:
    """What a trainer's own settings declare: fields of Spec; and of the others why nothing was taken from them."""

    fields: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: Any) -> None:
        """The trainer declares this."""
        self.fields[name] = value

    def accumulated(self, count: int, batches: float) -> None:
        """So many batches to a step, where an epoch has as many: else each epoch is one step of what there is."""
        if count <= batches:
            self.take("accumulation", count)
        else:
            self.leave("accumulation", f"an epoch has {batches} batches, fewer than the {count} of a step")

    def leave(self, name: str, why: str) -> None:
        """It does not, or not so that it decides anything."""
        self.left_out[name] = why


class Duty:
    """The guards on the present run of a trainer, with the arguments of `watch`; the report of the last run is kept.

    guards: what `watch` returned, while a run is on. inferred: the fields of Spec that were taken from the trainer;
    not_inferred: those that were not, and why. ConfigError for a spec or an argument that cannot be used.
    """

    def __init__(
        self,
        spec: Spec | Mapping[str, Any] | str | Path | None = None,
        policy: Policy | str = Policy.WARN,
        *,
        every: int = EVERY,
        ledger: Path | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
            raise ConfigError(
                f"GuardCallback has no argument {unknown[0]!r}", required=f"those of watch: {', '.join(OPTIONS)}",
                next_step=f"did you mean {near[0]!r}?" if near else "",
            )  # fmt: skip
        self._spec = read_spec(spec)
        self._options = {"policy": policy, "every": every, "ledger": ledger, **options}
        self._report: WatchReport | None = None
        self.guards: Watch | None = None
        self.inferred: dict[str, Any] = {}
        self.not_inferred: dict[str, str] = {}

    @property
    def report(self) -> WatchReport | None:
        """What the last run came to; None before the first. Guards that are still on, as a run ended without a word, end."""
        self._end_unsaid()
        return self._report

    def attach(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], inferred: Inferred, **found: Any
    ) -> None:
        """Puts the guards on a run. What the user gave comes before what the trainer declares, None too."""
        self._end_unsaid()
        given = {name: getattr(self._spec, name) for name in self._spec.model_fields_set}
        self.inferred = {name: value for name, value in inferred.fields.items() if name not in given}
        self.not_inferred = dict(inferred.left_out)
        spec = read_spec({**self.inferred, **given})
        self.guards = watch(model, optimizers, spec=spec, **{**found, **self._options})

    def hand_on(self, **logged: Any) -> None:
        """Tells the guards what the trainer logged, of that what is there. (Lightning gives callbacks a `log` of its own.)"""
        there = {name: value for name, value in logged.items() if value is not None}
        if self.guards is not None and there:
            self.guards.log(**there)

    def finish(self, early: str = "", error: BaseException | None = None) -> None:
        """Ends the guards: hooks are taken off, the report is kept. Calling it again is harmless.

        early: why the run ends before its declared total, where that is meant. error: what ended it. Stopped under strict,
        for a FAIL that only shows at the end.
        """
        guards, self.guards = self.guards, None
        if guards is None:
            return
        try:
            if error is not None:
                guards.__exit__(type(error), error, error.__traceback__)
            guards.finish(early)
        finally:
            self._report = guards.finish()

    def _end_unsaid(self) -> None:
        with contextlib.suppress(Stopped):
            self.finish(NO_WORD)
