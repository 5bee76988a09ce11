"""The frame of the guards: hooks before and after the steps and the forwards of a loop, and whom of the checks they ask."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from karat.core.errors import ConfigError
from karat.core.observation import Phase
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.runtime.watching.between import Between
from karat.invariants.runtime.watching.calls import Calls, Told
from karat.invariants.runtime.watching.captured import autocast_now, autocast_on
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.cost import Cost, Kind
from karat.invariants.runtime.watching.declared import Declared
from karat.invariants.runtime.watching.heard import Shield, take_off
from karat.invariants.runtime.watching.interrupts import from_signal
from karat.invariants.runtime.watching.loop import DENSE, MANY, Loop
from karat.invariants.runtime.watching.tally import Tally

WATCHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Optimizer -> the guards on it: they live as long as the optimizer whose hooks hold them."""


class Frame:
    """What is attached to a loop, and asks the checks."""

    def __init__(self, loop: Loop, checks: list[Check], declared: Declared) -> None:
        self._loop, self._checks, self._declared = loop, checks, declared
        self._own: dict[str, list[tuple[int, Callable[..., None]]]] = {}
        self._moments: dict[int, Moment] = {}
        self._rates: list[list[Any] | None] = [None] * len(loop.optimizers)
        self._between = False
        self._until = 0
        """The step at which more is looked at than between two looks."""
        self._handles: list[Any] = []
        self._over = False
        """Whether the report was made."""
        self._cost = Cost()
        loop.betweens = [Between(loop, n, self._cost, self._ended) for n in range(len(loop.optimizers))]
        self._first = 0.0
        for check in checks:
            for rule in check.rules:
                loop.tallies.setdefault(rule.id, Tally(rule, check.interval))
        for check in checks:
            self._asked(check.start)
        self._duties = -1
        self._attach()

    def _attach(self) -> None:
        self._list()
        for place, optimizer in enumerate(self._loop.optimizers):
            before, after = partial(self._before_step, place), partial(self._after_step, place)
            shield = Shield(self._broke, self._loop.betweens[place])
            self._handles.append(optimizer.register_step_pre_hook(shield.before(before)))
            self._handles.append(optimizer.register_step_post_hook(shield.after(after)))
            WATCHED[optimizer] = weakref.ref(self)
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
            if moment.closure and not self._over:
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
        if loop.duties != self._duties:
            self._list()
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
        off, resting, own = self._loop.off_duty, self._loop.resting, self._own.get(moment)
        if own is None:
            does = [c for c in self._checks if getattr(type(c), moment) is not getattr(Check, moment)]
            own = self._own[moment] = [(id(c), getattr(c, moment)) for c in does]
        return [call for check, call in own if check not in off and (check, moment) not in resting]

    def _detach(self) -> None:
        for handle in self._handles:
            take_off(handle)
        self._handles = []
        for optimizer in self._loop.optimizers:
            WATCHED.pop(optimizer, None)


def _told(watching: weakref.ref[Frame]) -> Told:
    def told(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        guards = watching()
        if guards is not None and not guards._over:
            try:
                guards._forwarded(module, args, kwargs, output)
            except Stopped:
                raise
            except Exception as error:
                if from_signal(error):
                    raise
                guards._broke(error)

    return told
