"""RUN-42, RUN-43 and RUN-44 of checkpoints that the loop tells of, and of states that the model loads while it is watched.

A state with a recorded step, given before the first step, was read; any other is about to be written. What was read is
compared with what is there now; what is written, with the weights and the evaluations of its step.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from karat.invariants.run.rule import Rule, Severity
from karat.invariants.run.run42_resume import RULE as RESUME
from karat.invariants.run.run43_checkpoint import RULE as CHECKPOINT
from karat.invariants.run.run44_data_position import RULE as POSITION
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.evaluations import Evaluations
from karat.invariants.runtime.watching.loads import Loaded, listen
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import roots, some, unwrapped
from karat.invariants.runtime.watching.states import (
    Likeness,
    Parts,
    elsewhere,
    keeps_moments,
    likeness,
    live_parameters,
    loaded_into,
    parts_of,
    schedulers_of,
)

FAR = 0.5
"""Relative distance of weights from the live ones from which on they are no average of these."""
SAME = 1e-6
FAIL, WARN = Severity.FAIL, Severity.WARN


class Checkpoints(Check):
    rules = (RESUME, CHECKPOINT, POSITION)
    interval = "when guards.checkpoint(…) is called"
    heard = True

    def __init__(self) -> None:
        self._evaluations = Evaluations()
        self._handles: list[Any] = []
        self._load: Loaded | None = None
        self._reloaded = False
        self._first = self._offset = 0
        self._loop: weakref.ref[Loop] | None = None
        self._expected: float | None = None
        self._position = -math.inf
        self._trained: tuple[int, Any] | None = None
        self._told: set[float] = set()
        """Numbers that were logged last."""
        self._usual = False
        """Whether the loss of a batch was recorded where no evaluation was known: then it is meant."""

    def start(self, loop: Loop) -> None:
        self._first, self._loop = loop.step, weakref.ref(loop)
        why = "guards.checkpoint(state) was not called"
        loop.not_checked(CHECKPOINT, why)
        loop.not_checked(RESUME, why + " for what was read; resume_parity(make, step) tries it out")
        loop.not_checked(POSITION, 'no "position" in what guards.checkpoint was given, or no guards.log(position=…)')
        for _, module in roots(loop.model):
            self._handles.append(listen(unwrapped(module), weakref.WeakMethod(self.took)))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._load is not None:
            self._judge_load(loop, moment.step, self._load)
            self._load = None
        self._reloaded = False

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        if "checkpoint" in logged:
            self._checkpoint(loop, **logged["checkpoint"])
            return
        if "position" in logged:
            self._at(loop, float(logged["position"]))
        if (loss := logged.get("loss")) is not None:
            self._trained = loop.step, loss.detach() if isinstance(loss, torch.Tensor) else loss
        self._told = {value for value in logged.values() if isinstance(value, float)}
        for name, value in logged.items():
            self._evaluations.take(loop, name, value)

    # -- a checkpoint -------------------------------------------------------------------------------------------------

    def _checkpoint(self, loop: Loop, state: Any, loss: Any, step: int | None) -> None:
        parts = parts_of(state)
        recorded = parts.step if step is None else int(step)
        loop.unchecked.pop(CHECKPOINT.slug, None)
        read = recorded is not None and recorded > 0 and loop.step == self._first
        weights = _compare(loop, parts)
        if read or self._reloaded:
            self._read(loop, parts, recorded, weights)
            if read and recorded is not None:
                self._offset = recorded - loop.step
        else:
            live = state is None or (weights is not None and not weights.other)
            self._written(loop, parts, recorded, step is not None, weights)
            if live:
                self._of_now(loop, recorded, step is not None, loss)
        if loss is not None and not math.isfinite(float(loss)):
            _say(loop, CHECKPOINT, loop.step, FAIL, f"the recorded loss is {float(loss)}", "loss")
        loop.held_for(CHECKPOINT, loop.step)

    def _read(self, loop: Loop, parts: Parts, recorded: int | None, weights: Likeness | None) -> None:
        """What was read is what is there."""
        step = loop.step if recorded is None else recorded
        of = "the checkpoint" if recorded is None else f"the checkpoint of step {recorded}"
        loop.unchecked.pop(RESUME.slug, None)
        if weights is not None and weights.other:
            if not weights.equal:
                _say(
                    loop, CHECKPOINT, step, FAIL, f"the weights of {of} were not loaded: none of the "
                    f"{len(weights.other)} parameters looked at is the model's", "weights",
                    f"{some(weights.other)}; relative distance {weights.distance:.2g}",
                )  # fmt: skip
            else:
                _say(
                    loop, CHECKPOINT, step, WARN,
                    f"{len(weights.other)} parameters are not those of {of}: {some(weights.other)}", "weights",
                )  # fmt: skip
        for optimizer in loop.optimizers:
            self._moments(loop, parts, optimizer, step, of, weights)
        self._schedule(loop, parts, step, of)
        if parts.position is not None:
            self._expected, self._position = parts.position, -math.inf
        loop.held_for(RESUME, step)

    def _moments(
        self, loop: Loop, parts: Parts, optimizer: torch.optim.Optimizer, step: int, of: str, weights: Likeness | None
    ) -> None:
        kind = type(optimizer).__name__
        if any(loaded_into(held, optimizer) for held in parts.optimizers):
            return
        if parts.optimizers:
            now = "starts from nothing" if not optimizer.state else "has other moments"
            _say(loop, RESUME, step, FAIL, f"the optimizer's state in {of} was not loaded: {kind} {now}", kind)
            return
        forgets = keeps_moments(optimizer) and not optimizer.state
        if forgets and step > 0 and weights is not None and not weights.other:
            _say(loop, RESUME, step, WARN, f"{of} has no optimizer state: {kind} starts from nothing", kind)

    def _schedule(self, loop: Loop, parts: Parts, step: int, of: str) -> None:
        for scheduler in schedulers_of(loop.optimizers, loop.scheduler):
            kind, now = type(scheduler).__name__, scheduler.last_epoch
            saved = [held["last_epoch"] for held in parts.schedulers]
            if now in saved:
                continue
            if saved:
                message = f"the schedule in {of} was not loaded: {kind} stands at {now}, the checkpoint at {saved[0]}"
                _say(loop, RESUME, step, WARN, message, kind)
            elif parts.optimizers and now != step:
                _say(loop, RESUME, step, WARN, f"{of} has no schedule: {kind} stands at {now}", kind)

    def _written(
        self, loop: Loop, parts: Parts, recorded: int | None, explicit: bool, weights: Likeness | None
    ) -> None:
        """What is written holds the model, and what a resume needs."""
        taken = loop.step + self._offset
        claims_now = recorded is not None and taken - 1 <= recorded <= taken and loop.step > self._first
        foreign = weights is not None and weights.other and not weights.equal and weights.distance > FAR
        if claims_now and foreign and weights is not None and not _alive_elsewhere(loop, parts):
            _say(
                loop, CHECKPOINT, loop.step, FAIL, f"the weights in the checkpoint of step {recorded} are not the "
                f"model's: none of the {len(weights.other)} parameters looked at is equal", "weights",
                f"{some(weights.other)}; relative distance {weights.distance:.2g}",
            )  # fmt: skip
        to_resume = parts.models and (parts.schedulers or parts.random)
        if to_resume and not parts.optimizers and any(o.state for o in loop.optimizers):
            kind = type(loop.optimizers[0]).__name__
            _say(loop, RESUME, loop.step, WARN, f"the checkpoint has no state of {kind}: a resume starts its moments "
                 "from nothing", kind)  # fmt: skip
        if parts.models and parts.optimizers and not parts.schedulers:
            for scheduler in schedulers_of(loop.optimizers, loop.scheduler):
                kind = type(scheduler).__name__
                _say(loop, RESUME, loop.step, WARN, f"the checkpoint has no state of {kind}: a resume starts its "
                     "schedule again", kind)  # fmt: skip

    def _of_now(self, loop: Loop, recorded: int | None, explicit: bool, loss: Any) -> None:
        """The weights are those of now: so must be the step and the loss that are recorded with them."""
        taken = loop.step + self._offset
        if loss is not None and self._stale(loop, recorded, float(loss), taken):
            return
        if loss is not None:
            self._of_a_batch(loop, float(loss))
        each = [count - self._first for count in loop.taken]
        counted = {taken, taken - 1, *each, *(n - 1 for n in each)}
        if recorded is not None and recorded < taken - 1 and recorded not in counted:
            _say(
                loop, CHECKPOINT, max(0, loop.step - 1), FAIL if explicit else WARN,
                f"the checkpoint records step {recorded}, its weights are those after {taken} steps", "step",
            )  # fmt: skip

    def _stale(self, loop: Loop, recorded: int | None, loss: float, taken: int) -> bool:
        """Whether the loss is an older evaluation's, of other weights than those that are saved."""
        older = self._evaluations.older(loop, loss)
        if older is None:
            return False
        name, then, last = older
        kept = recorded is not None and recorded < taken - 1
        cause = "they were kept by reference, not copied" if kept else "it is of an evaluation before"
        _say(
            loop, CHECKPOINT, max(0, loop.step - 1), FAIL, f"the recorded loss {loss:.6g} is {name} after "
            f"{then + self._offset} steps, the weights are those after {taken}: {cause}", "loss",
            f"the last {name} is {last:.6g}",
        )  # fmt: skip
        return True

    def _of_a_batch(self, loop: Loop, loss: float) -> None:
        """Whether the loss is that of the last batch, while an evaluation of these very weights is known; or a number that
        nobody logged, where the loop logs losses of evaluations alone."""
        trained = self._trained
        if self._usual:
            return
        evaluated = self._evaluations.now(loop)
        if trained is None:
            foreign = self._evaluations.foreign(loop, loss) if loss not in self._told else None
            if foreign is not None:
                name, value = foreign
                _say(
                    loop, CHECKPOINT, max(0, loop.step - 1), WARN, f"the recorded loss {loss:.6g} is of no evaluation that was "
                    f"logged; {name} of the weights that are saved is {value:.6g}", "batch",
                )  # fmt: skip
            elif evaluated is None:
                self._usual = True
            return
        if trained[0] < loop.step - 1 or abs(float(trained[1]) - loss) > SAME * abs(loss):
            return
        if evaluated is None:
            self._usual = True  # it is what this loop records
            return
        name, value = evaluated
        if abs(value - loss) > SAME * abs(loss):
            _say(
                loop, CHECKPOINT, max(0, loop.step - 1), WARN, f"the recorded loss {loss:.6g} is the training loss of the last "
                f"batch; {name} of the weights that are saved is {value:.6g}", "batch",
            )  # fmt: skip

    # -- positions and loads ------------------------------------------------------------------------------------------

    def _at(self, loop: Loop, position: float) -> None:
        """A logged position in the data: after a resume not below the checkpoint's."""
        fell = position < self._position
        expected, self._position = self._expected, position
        if expected is None:
            return
        if fell:  # it is counted anew in each epoch: nothing is known of the one before
            self._expected = None
            return
        loop.unchecked.pop(POSITION.slug, None)
        self._expected = None
        loop.judge(
            POSITION, max(0, loop.step - 1) + self._offset, POSITION.margin(position, expected),
            lambda: {
                "message": f"the data goes on at {position:g} where the checkpoint stopped at {expected:g}: "
                f"{'it starts at its beginning again' if position <= expected / 2 else 'some of it comes again'}",
            },
        )  # fmt: skip

    def took(self, loaded: Loaded) -> None:
        """After a load_state_dict; judged before the next step, so that a second try may do better."""
        self._load, self._reloaded = loaded, True
        loop = self._loop() if self._loop is not None else None
        if loop is not None:
            loop.stir(turn=True)

    def finish(self, loop: Loop) -> None:
        if self._load is not None and self._load.own:
            self._judge_load(loop, loop.step, self._load)

    def _judge_load(self, loop: Loop, step: int, loaded: Loaded) -> None:
        loop.unchecked.pop(CHECKPOINT.slug, None)
        if loaded.own and step > self._first:
            _say(
                loop, CHECKPOINT, step, WARN, "load_state_dict was given the model's own tensors, and changed nothing: a "
                "state_dict() that is kept without a copy goes on training with the model", "own")  # fmt: skip
            return
        if loaded.nothing:
            _say(
                loop, CHECKPOINT, step, FAIL, f"load_state_dict loaded none of the {len(loaded.parameters)} parameters",
                "load", f"not found: {some(loaded.missing)}; not known: {some(loaded.unexpected) or 'none'}",
            )  # fmt: skip
            return
        renamed = loaded.renamed
        if renamed:
            _say(
                loop, CHECKPOINT, step, WARN, f"load_state_dict left {len(renamed)} parameters as they were, whose names "
                f"in the state are others: {some(renamed)}", "load", f"not known: {some(loaded.unexpected)}",
            )  # fmt: skip
            return
        loop.held_for(CHECKPOINT, step)

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._evaluations, self._load, self._trained = [], Evaluations(), None, None


def _say(loop: Loop, rule: Rule, step: int, severity: Severity, message: str, where: str, evidence: str = "") -> None:
    loop.judge(
        rule, step, rule.margin(1.0, 0.0),
        lambda: {"message": message, "where": where, "severity": severity, "evidence": evidence, "phase": "checkpoint"},
    )  # fmt: skip


def _compare(loop: Loop, parts: Parts) -> Likeness | None:
    """The weights in the state beside the model's, or the average's: of several, those that are nearest."""
    found: list[Likeness] = []
    for _, module in roots(loop.model):
        of_root = [
            like for held in parts.models.values() if (like := likeness(held, live_parameters(module))) is not None
        ]
        if loop.ema is not None:
            average = live_parameters(loop.ema)
            of_root += [like for held in parts.models.values() if (like := likeness(held, average)) and not like.other]
        if of_root:
            found.append(min(of_root, key=lambda like: (len(like.other), like.distance)))
    if not found:
        return None
    equal, other = (tuple(n for like in found for n in names(like)) for names in (_equal, _other))
    return Likeness(equal, other, max(like.distance for like in found))


def _alive_elsewhere(loop: Loop, parts: Parts) -> bool:
    return any(elsewhere(held, module) for held in parts.models.values() for _, module in roots(loop.model))


def _equal(like: Likeness) -> tuple[str, ...]:
    return like.equal


def _other(like: Likeness) -> tuple[str, ...]:
    return like.other
