"""watch: the guards on any PyTorch loop, attached to the optimizers' own step hooks and the model's forward hooks.

    guards = watch(model, optimizer)

Nothing else in the loop changes, and nothing of it is changed by the guards. What was not declared is inferred where
that is certain, else it is not checked, and the report says so.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError, StorageError
from karat.core.observation import Phase
from karat.core.policy import Policy
from karat.core.report import Violation, write_report
from karat.invariants import inv08_lr_band as inv08
from karat.invariants.run.spec import Spec
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watching.attached import look_through
from karat.invariants.runtime.watching.between import Between
from karat.invariants.runtime.watching.calls import Calls, Told
from karat.invariants.runtime.watching.captured import autocast_now, autocast_on
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.checks import every_check
from karat.invariants.runtime.watching.cost import Cost, Kind
from karat.invariants.runtime.watching.declared import Declared, Mixing, Observe, declare
from karat.invariants.runtime.watching.given import declared_spec, require_settings, several_optimizers
from karat.invariants.runtime.watching.heard import Shield, take_off
from karat.invariants.runtime.watching.interrupts import from_signal
from karat.invariants.runtime.watching.loop import DENSE, MANY, Loop
from karat.invariants.runtime.watching.naming import one_model, unwrapped
from karat.invariants.runtime.watching.report import WatchReport
from karat.invariants.runtime.watching.speaking import Rows, Said, require_writable
from karat.invariants.runtime.watching.tally import Tally

EVERY = 500
"""Steps between two looks of the expensive probes."""

_WATCHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Watch]] = weakref.WeakKeyDictionary()
"""Optimizer -> the guards on it: they live as long as the optimizer whose hooks hold them."""


def _speak(text: str) -> None:
    if sys.stderr is None:
        return  # print would take standard output
    print(text, file=sys.stderr)


class Watch:
    """The guards attached to a loop. A context manager: leaving it finishes them, also when the loop raised."""

    def __init__(self, loop: Loop, checks: list[Check], declared: Declared, report: Path | None) -> None:
        self._loop, self._checks, self._declared, self._report_path = loop, checks, declared, report
        self._moments: dict[int, Moment] = {}
        self._rates: list[list[Any] | None] = [None] * len(loop.optimizers)
        self._between = False
        self._until = 0
        """The step at which more is looked at than between two looks."""
        self._handles: list[Any] = []
        self._report: WatchReport | None = None
        self._cost = Cost()
        loop.betweens = [Between(loop, n, self._cost, self._ended) for n in range(len(loop.optimizers))]
        self._first = 0.0
        self._outcome = "finished"
        for check in checks:
            for rule in check.rules:
                loop.tallies.setdefault(rule.id, Tally(rule, check.interval))
        for check in checks:
            self._asked(check.start)
        self._duties = -1
        self._attach()

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

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        self._list()
        for place, optimizer in enumerate(self._loop.optimizers):
            before, after = partial(self._before_step, place), partial(self._after_step, place)
            shield = Shield(self._broke, self._loop.betweens[place])
            self._handles.append(optimizer.register_step_pre_hook(shield.before(before)))
            self._handles.append(optimizer.register_step_post_hook(shield.after(after)))
            _WATCHED[optimizer] = weakref.ref(self)
        self._heard = Calls(self._loop.model, self._loop.so_far, _told(weakref.ref(self)))
        self._handles.append(self._heard)

    def _list(self) -> None:
        """Lists what is to be asked at each moment: anew when a check went off duty, or rests at one."""
        self._duties = self._loop.duties
        self._log_calls = self._on_duty("log")
        self._loop.stir()
        self._calls: dict[tuple[str, bool, bool, bool], list[Callable[..., None]]] = {}
        self._between_checks: list[Check] | None = None
        self._brief = False

    def _of(self, moment: str, kept: bool, between: bool, steady: bool = False) -> list[Callable[..., None]]:
        """What is to be asked at a moment of a step. kept: its forward is; between: without the checks that are spaced;
        steady: without those of the rates."""
        key = moment, kept, between, steady
        found = self._calls.get(key)
        if found is None:
            calls = [(call, call.__self__) for call in self._on_duty(moment)]  # type: ignore[attr-defined]
            found = self._calls[key] = [
                call for call, check in calls
                if (kept or not check.of_forward) and not (between and check.spaced) and not (steady and check.of_rates)
            ]  # fmt: skip
        return found

    def _forwarded(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        began = time.thread_time() if self._cost.timed else 0.0
        loop = self._loop
        if torch.is_grad_enabled():
            loop.call = module, args, kwargs, autocast_now() if autocast_on() else ()
        kept = loop.captured is not None or loop.capture_next
        between = self._between and loop.forwards - loop.applied <= MANY
        self._ask(self._of("forward", kept, between), module, args, kwargs, output)
        if self._cost.timed:
            self._cost.add(time.thread_time() - began)

    def _before_step(self, place: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._first = self._first or time.perf_counter()
        began = time.thread_time() if self._cost.timed else 0.0
        closure = len(args) > 1 or bool(kwargs)  # args[0] is the optimizer
        closure = closure and any(callable(given) for given in (*args[1:], kwargs.get("closure")))
        moment = Moment(optimizer, place, self._loop.taken[place], closure, 0, self._loop.held[place])
        self._moments[place] = moment
        self._heard.renew()
        try:
            if not closure:
                self._judge(moment)
                return None
        finally:
            if self._cost.timed:
                self._cost.add(time.thread_time() - began)
        followed = partial(self._followed, moment)
        return (args[0], *map(followed, args[1:])), {n: followed(v) if n == "closure" else v for n, v in kwargs.items()}

    def _followed(self, moment: Moment, given: Any) -> Any:
        """A closure followed by the guards, the first time that it is called: then its gradients are there, and no
        parameter has changed yet. Anything else as it is."""
        if not callable(given):
            return given

        def closure(*args: Any, **kwargs: Any) -> Any:
            loss = given(*args, **kwargs)
            if moment.closure and self._report is None:
                began = time.thread_time()
                moment.closure = False
                try:
                    self._judge(moment)
                finally:
                    if self._cost.timed:
                        self._cost.add(time.thread_time() - began)
            return loss

        return closure

    def _after_step(self, place: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        moment = self._moments.pop(place, None)
        if moment is None:
            return
        began = time.thread_time() if self._cost.timed else 0.0
        loop = self._loop
        try:
            if moment.closure:  # the optimizer never called it
                self._judge(moment)
            kept, step = loop.captured is not None, moment.step
            self._ask(self._of("after_step", kept, moment.between and loop.between(step + 1)), moment)
        finally:
            loop.call = None
            if self._cost.timed:
                self._cost.add(time.thread_time() - began)
        self._advance(place)
        if loop.between(step + 1):
            loop.betweens[place].prepare(self._asked_between(), loop.next_look(step + 1))
            loop.so_far.brief = self._heard.alone and self._between and self._brief
        loop.stop_if_strict()

    def _asked_between(self) -> list[Check]:
        """The checks that are asked in a step between two looks, by those that are on duty."""
        if self._between_checks is None:
            calls = [call for moment in ("look", "before_step", "after_step") for call in self._of(moment, False, True)]
            checks = {id(check): check for call in calls if (check := call.__self__)}  # type: ignore[attr-defined]
            self._between_checks = [*checks.values()]
            told = [call.__self__ for call in self._of("forward", False, True)]  # type: ignore[attr-defined]
            self._brief = all(check.heard for check in told)
        return self._between_checks

    def _ended(self, place: int) -> None:
        """After a step in which only few numbers were read; at the last one before a look, what that compares is noted."""
        loop, step = self._loop, self._loop.taken[place]
        if step + 1 == loop.betweens[place].until:
            moment = Moment(loop.optimizers[place], place, step, False, 0, loop.held[place], between=True)
            asked = self._of("after_step", False, True)
            self._ask([call for call in self._of("after_step", False, False) if call not in asked], moment)
        self._advance(place)

    def _advance(self, place: int) -> None:
        """A step was taken."""
        loop = self._loop
        loop.taken[place] = step = loop.taken[place] + 1
        loop.forwards_at[place] = loop.applied = loop.forwards
        loop.so_far.untold = 0
        loop.ended = time.perf_counter()
        if step <= loop.step:
            return
        loop.step = step
        if step < self._until:
            self._cost.turn(Kind.BETWEEN)
            return
        looked = loop.looked(step)
        loop.so_far.brief = False
        loop.capture_next = loop.capture_next or looked
        self._between = loop.between(step)
        self._until = loop.next_look(step)
        kind = Kind.START if step - loop.first < DENSE else Kind.LOOK if looked else Kind.TURN
        self._cost.turn(Kind.BETWEEN if self._between else kind)

    def _judge(self, moment: Moment) -> None:
        loop = self._loop
        moment.forwards = loop.forwards - loop.forwards_at[moment.index]
        moment.between = between = loop.between(moment.step)
        rates: list[Any] = [group.get("lr") for group in moment.optimizer.param_groups]
        steady = between and rates == self._rates[moment.index]
        if steady:
            moment.rates = tuple(map(float, rates))
        elif all(type(rate) is float and rate for rate in rates):
            self._rates[moment.index] = rates
        else:  # tensors change in place, and a rate of 0 is counted
            self._rates[moment.index] = None
        graph = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # as no_grad, which is an object more in every step
        try:
            self._ask(self._of("look", loop.captured is not None, between, steady), moment)
            self._bring()
            self._ask(self._of("before_step", loop.captured is not None, between, steady), moment)
        finally:
            torch._C._set_grad_enabled(graph)
        if self._declared.probes and moment.index == 0:
            self._declared.monitor.check(Phase.BEFORE_STEP, moment.step, self._declared.readings(moment.step))
        loop.stop_if_strict()

    def _ask(self, calls: list[Callable[..., None]], *given: Any) -> None:
        """Asks all checks of a moment: one that raises is taken off duty and named in the report; the loop goes on."""
        loop = self._loop
        if self._cost.timed:
            for call in calls:
                began = time.thread_time()
                self._asked(call, *given)
                self._cost.take(type(call.__self__).__name__, time.thread_time() - began)  # type: ignore[attr-defined]
        else:
            left = iter(calls)
            call = None
            while True:
                try:
                    for call in left:
                        call(loop, *given)
                    break
                except (Stopped, ConfigError):
                    raise
                except Exception as error:
                    if from_signal(error):
                        raise
                    loop.broke(call.__self__, call.__name__, error)  # type: ignore[union-attr]
        if loop.duties != self._duties:
            self._list()

    def _asked(self, method: Callable[..., None], *given: Any) -> None:
        """One call of a check."""
        try:
            method(self._loop, *given)
        except (Stopped, ConfigError):
            raise
        except Exception as error:
            if from_signal(error):
                raise
            self._loop.broke(method.__self__, method.__name__, error)  # type: ignore[attr-defined]

    def _bring(self) -> None:
        """Answers what was asked for; who cannot be answered is taken off duty."""
        transfer = self._loop.transfer
        transfer.bring()
        if not transfer.failed:
            return
        for check, error in transfer.failed:
            if check is None:
                self._loop.unchecked.setdefault("numbers", f"some could not be read: {type(error).__name__}: {error}")
            else:
                self._loop.broke(check, "reading numbers", error)
        transfer.failed = []

    def _broke(self, error: Exception) -> None:
        """The guards' own frame raised: all checks are taken off duty, and the report says so."""
        for check in self._checks:
            self._loop.broke(check, "the frame of the guards", error)

    def _tell(self, logged: Mapping[str, Any]) -> None:
        began = time.thread_time() if self._cost.timed else 0.0
        self._ask(self._log_calls, logged)
        if self._cost.timed:
            self._cost.add(time.thread_time() - began)
        self._loop.stop_if_strict()

    def _on_duty(self, moment: str) -> list[Callable[..., None]]:
        """The methods of the checks that do something at a moment."""
        loop = self._loop
        own = [c for c in self._checks if getattr(type(c), moment) is not getattr(Check, moment)]
        return [getattr(c, moment) for c in own if id(c) not in loop.off_duty and (id(c), moment) not in loop.resting]

    # -- the end ------------------------------------------------------------------------------------------------------

    def _detach(self) -> None:
        for handle in self._handles:
            take_off(handle)
        self._handles = []
        for optimizer in self._loop.optimizers:
            _WATCHED.pop(optimizer, None)

    def _made_report(self) -> WatchReport:
        loop = self._loop
        lower = self._declared.not_checked.get("INV-8, lower end", "")
        own = [g.summary(lower if id_ == "INV-8" else "") for id_, g in self._declared.monitor.guards.items()]
        taken = loop.step - loop.first
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
        self._log_calls, self._calls = [], {}
        self._moments = {}
        self._declared = Declared(self._declared.monitor, (), self._declared.not_checked)
        self._loop.forget()


def _told(watching: weakref.ref[Watch]) -> Told:
    def told(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        guards = watching()
        if guards is not None and guards._report is None:
            try:
                guards._forwarded(module, args, kwargs, output)
            except Stopped:
                raise
            except Exception as error:
                if from_signal(error):
                    raise
                guards._broke(error)

    return told


def _at_exit() -> None:
    """A loop that never called finish: its checks of the end run when the process ends, and what was found is said."""
    for guards in [found for held in set(_WATCHED.values()) if (found := held()) is not None]:
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
    module, optimizers = one_model(model), several_optimizers(optimizer, _WATCHED)
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
