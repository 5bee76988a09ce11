"""watch: the guards on any PyTorch loop, attached to the optimizers' own step hooks and the model's forward hooks.

    guards = watch(model, optimizer)

Nothing else in the loop changes, and nothing of it is changed by the guards: only while batches come again, `__next__` of
torch's loader iterators is wrapped, to see which of them they come from (watching/draws.py). What was not declared is
inferred where that is certain, else it is not checked, and the report says so.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError, StorageError
from karat.core.policy import Policy
from karat.core.report import Violation, write_report
from karat.invariants import inv08_lr_band as inv08
from karat.invariants.run.spec import Spec
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watching.attached import look_through
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks import every_check
from karat.invariants.runtime.watching.declared import Declared, Mixing, Observe, declare
from karat.invariants.runtime.watching.frame import WATCHED, Frame
from karat.invariants.runtime.watching.given import declared_spec, require_settings, several_optimizers
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import one_model, unwrapped
from karat.invariants.runtime.watching.report import WatchReport
from karat.invariants.runtime.watching.speaking import Rows, Said, require_writable

EVERY = 500
"""Steps between two looks of the expensive probes."""


def _speak(text: str) -> None:
    if sys.stderr is None:
        return  # print would take standard output
    print(text, file=sys.stderr)


class Watch(Frame):
    """The guards attached to a loop. A context manager: leaving it finishes them, also when the loop raised."""

    def __init__(self, loop: Loop, checks: list[Check], declared: Declared, report: Path | None) -> None:
        self._report_path = report
        self._report: WatchReport | None = None
        self._outcome = "finished"
        super().__init__(loop, checks, declared)

    # -- what the user sees -------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, of the busiest optimizer."""
        return self._loop.step if self._report is None else self._report.steps

    @property
    def violations(self) -> list[Violation]:
        """What was found so far, in the order of the steps."""
        if self._report is not None:
            return list(self._report.violations)
        return sorted([*self._declared.monitor.violations, *self._loop.violations], key=lambda v: v.step)

    @property
    def not_checked(self) -> dict[str, str]:
        """Slug of a rule, or id of an invariant -> why it is not checked."""
        if self._report is not None:
            return dict(self._report.not_checked)
        return {**self._declared.not_checked, **self._loop.unchecked}

    def log(
        self,
        loss: Any = None,
        losses: Mapping[str, Any] | None = None,
        *,
        inputs: Any = None,
        targets: Any = None,
        **metrics: Any,
    ) -> None:
        """Tells the guards what hooks cannot see; optional, any time in a step. loss: the total, a tensor or a number.

        losses: name -> term of the loss, before backward, so that it is seen what each is connected to. inputs, targets:
        of the batch, (B, T) tokens or (B,) classes. Numbers under other names are kept: val_loss and the like.
        """
        if self._report is not None:
            return
        given = {"loss": loss, "losses": losses, "inputs": inputs, "targets": targets, **metrics}
        logged = {name: value for name, value in given.items() if value is not None}
        if losses is not None and not isinstance(losses, Mapping):
            raise ConfigError(
                f"losses is {type(losses).__name__}", required="a mapping of names to terms",
                next_step='guards.log(losses={"ce": ce, "aux": aux})',
            )  # fmt: skip
        self._tell(logged)

    def checkpoint(self, state: Any = None, *, loss: float | None = None, step: int | None = None) -> None:
        """Tells the guards of a checkpoint that is about to be written or was read: its state, recorded loss and step."""
        if self._report is None:
            self._tell({"checkpoint": {"state": state, "loss": loss, "step": step}})

    def split(self, *, train: Any, validation: Any) -> None:
        """Gives the guards both parts of the data, to be compared: data sets, tensors or arrays of tokens."""
        if self._report is None:
            self._tell({"split": (train, validation)})

    def finish(self, early: str = "") -> WatchReport:
        """Runs the checks of the end, detaches the guards and returns the report; again is harmless.

        early: why the run ends before its declared total, where that is meant (early stopping); RUN-1 then asks no more.
        """
        if self._report is None:
            self._detach()
            if early:
                self._outcome, self._loop.early = f"ended early: {early}", True
            for between in self._loop.betweens:
                between.tell()
            for call in self._on_duty("finish"):
                self._asked(call)
            self._bring()
            self._report = self._made_report()
            self._over = True
            self._let_go()
            if self._report_path is not None:
                try:
                    write_report(self._report_path, self._report)
                except (OSError, StorageError) as error:
                    self._loop.say(f"the report of the guards cannot be written: {error}")
            self._loop.stop_if_strict()
        return self._report

    def end(self) -> None:
        """Finishes at the end of the process: nothing is raised, and under WARN the report is said in short."""
        try:
            report = self.finish()
        except Stopped as stopped:
            report = self.finish()
            self._loop.say(str(stopped))
        if self._loop.policy is Policy.WARN:
            self._loop.say(str(report).partition("\nheld")[0])

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        self._outcome = f"the loop raised {type(error).__name__} after step {self._loop.step}"
        self._loop.early = True
        with contextlib.suppress(Stopped):  # the loop's own exception goes on
            self.finish()

    # -- the end ------------------------------------------------------------------------------------------------------

    def _made_report(self) -> WatchReport:
        loop = self._loop
        lower = self._declared.not_checked.get("INV-8, lower end", "")
        own = [g.summary(lower if id_ == "INV-8" else "") for id_, g in self._declared.monitor.guards.items()]
        taken = loop.step - loop.first
        for tally in loop.tallies.values():
            if not tally.checks and not tally.violations:
                loop.not_checked(tally.rule, "nothing came up that it could judge")
        tallies = sorted(loop.tallies.values(), key=lambda t: int(t.rule.id.partition("-")[2]))
        return WatchReport(
            policy=loop.policy.value, steps=loop.step, every=loop.every, outcome=self._outcome,
            violations=tuple(self.violations), suppressed=tuple(loop.suppressed),
            guards=(*own, *(tally.summary() for tally in tallies)), not_checked=self.not_checked,
            cost=self._cost.of_a_step(), start_ms=self._cost.start * 1e3,
            step_ms=1e3 * (loop.ended - self._first) / taken if taken else 0.0,
            fingerprint=dict(loop.fingerprint),
        )  # fmt: skip

    def _let_go(self) -> None:
        """Drops all that was held of the loop."""
        for check in self._checks:
            with contextlib.suppress(Exception):
                check.drop()
        close = getattr(self._loop.ledger, "close", None)
        if close is not None:
            close()
        self._checks = []
        self._log_calls, self._calls, self._own = [], {}, {}
        self._moments = {}
        self._declared = Declared(self._declared.monitor, (), self._declared.not_checked)
        self._loop.forget()


def _at_exit() -> None:
    """A loop that never called finish: its checks of the end run when the process ends, and what was found is said."""
    for guards in [found for held in set(WATCHED.values()) if (found := held()) is not None]:
        guards.end()


atexit.register(_at_exit)
look_through()


def watch(
    model: nn.Module | Iterable[nn.Module] | Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    *,
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    policy: Policy | str = Policy.WARN,
    scheduler: Any = None,
    scaler: Any = None,
    ema: nn.Module | None = None,
    replicas: Iterable[nn.Module] = (),
    total_steps: int | None = None,
    first_step: int = 0,
    every: int = EVERY,
    lr_band: inv08.Band | None = None,
    plateau: Callable[[int], bool] | None = None,
    gf16: Iterable[str] | None = None,
    mixing: Mixing | None = None,
    invariants: Mapping[str, Observe] | None = None,
    ledger: Path | str | None = None,
    report: Path | str | None = None,
    say: Callable[[str], None] | None = None,
) -> Watch:
    """Attaches the guards to optimizer.step(); under STRICT a FAIL raises `Stopped` before the step changes anything.

    model: a module, wrapped or not, or several; optimizer: one or several. spec: what is meant (Spec, a mapping, a TOML
    file). scheduler, scaler: found by themselves where they are torch's. ema: the averaged model; replicas: copies that
    must agree. first_step: the number of the next step, where a run is resumed. every: steps between two looks of the
    expensive probes. lr_band, gf16, mixing, invariants: the guards of the catalogue (INV-8 with `plateau(step)`, INV-3,
    INV-11, any other by name). ledger: a file of rows; report: where the report is written at the end; say: where WARN
    speaks (standard error). ConfigError for what cannot be watched. The gradients of a closure are looked at when it has
    returned for the first time.
    """
    require_settings(policy, every, first_step)
    module, optimizers = one_model(model), several_optimizers(optimizer, WATCHED)
    declared = declared_spec(spec, total_steps, module)
    said = Said(say or _speak)
    rows = Rows(Ledger(Path(ledger)), said) if ledger is not None else None
    if report is not None:
        require_writable(Path(report))
    loop = Loop(module, optimizers, declared, Policy(policy), every, said, rows, first_step)
    loop.scheduler, loop.scaler, loop.ema, loop.replicas = scheduler, scaler, ema, tuple(replicas)
    own = declare(
        unwrapped(module), optimizers[0], Policy(policy),
        lr_band=lr_band, plateau=plateau, gf16=gf16, mixing=mixing, invariants=invariants,
    )  # fmt: skip
    own.monitor.ledger, own.monitor.say = rows, said
    checks = [] if policy == Policy.OFF else every_check()
    return Watch(loop, checks, own, Path(report) if report is not None else None)
