"""RUN-23, 24, 25, 27, 30, 31: the forward of the first step, of a step in which it is seen to have changed, and of a few
later ones, run again a dozen times with inputs changed.

The probes are those of preflight; what is particular here is that the targets are read off the gradient, so that a
next-token model is known as one without being declared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from karat.invariants.run.rule import Rule, Severity
from karat.invariants.run.run23_causality import RULE as CAUSALITY
from karat.invariants.run.run24_batch_independence import RULE as BATCH
from karat.invariants.run.run25_eval_determinism import RULE as EVAL
from karat.invariants.run.run27_dropout import RULE as DROPOUT
from karat.invariants.run.run30_twins import RULE as TWINS
from karat.invariants.run.run31_inputs import RULE as INPUTS
from karat.invariants.run.run33_precision import RULE as PRECISION
from karat.invariants.run.run36_collapse import RULE as COLLAPSE
from karat.invariants.run.run39_targets import RULE as TARGETS
from karat.invariants.run.run40_padding import RULE as PADDING
from karat.invariants.runtime.preflight import modes
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.functions import Functions
from karat.invariants.runtime.watching.interrupts import from_signal
from karat.invariants.runtime.watching.looks import (
    causal,
    copies,
    drops,
    fed_zeros,
    inputs_matter,
    one_answer,
    parts_differ,
    samples_apart,
    told,
)
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.masks import reversed_masks
from karat.invariants.runtime.watching.replay import Replay

MOST_NEWS = 6
"""Times that a model is probed because something changed; beyond, as any other time."""
AGAIN = (64,)
"""Steps, besides the first and every K, in which the model is probed for no reason."""


class Probes(Check):
    rules = (CAUSALITY, BATCH, EVAL, DROPOUT, TWINS, INPUTS)
    interval = "first step, 64 and K, then after twice as many; when the forward changes"
    of_forward = True

    def __init__(self) -> None:
        self._probed: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._news = ""
        self._reasons: dict[str, str] = {}
        self._awake: set[str] = set()
        self._zeros: set[int] | None = None
        """Places, in the first optimizer, of weights whose gradients were zeros in all first steps so far."""

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if moment.index == 0 and moment.step - loop.first < DENSE:
            self._fed_zeros(loop, moment)
        if captured is None or not self._due(loop, captured, moment.step):
            return
        first = captured.root not in self._probed
        self._probed[captured.root] = moment.step
        self._news, loop.news = loop.news, ""
        trained = {n: p for n, p in captured.module.named_parameters() if p.requires_grad}
        try:
            with captured.undisturbed():
                replay = Replay(captured, loop.spec, trained)
                try:
                    self._run(loop, moment.step, replay, first)
                finally:
                    replay.calm()
        except NotRun as why:
            self._reasons.update({rule.id: str(why) for rule in self.rules})

    def _fed_zeros(self, loop: Loop, moment: Moment) -> None:
        """In the last of the first steps: weights that had nothing but zeros for gradients are asked for their inputs."""
        zeros = {i for i, norm in moment.norms.items() if norm == 0 and moment.held[i].parameter.ndim > 1}
        self._zeros = zeros if self._zeros is None else self._zeros & zeros
        captured = loop.captured
        if not self._zeros or moment.step - loop.first != DENSE - 1 or captured is None:
            return
        weights = {moment.held[i].name: moment.held[i].parameter for i in self._zeros if moment.held[i].name}
        with contextlib.suppress(NotRun), captured.undisturbed():
            replay = Replay(captured, loop.spec, {})
            self._say(loop, INPUTS, moment.step, lambda: fed_zeros(replay, weights))

    def _due(self, loop: Loop, captured: Captured, step: int) -> bool:
        last = self._probed.get(captured.root)
        if last is None or step >= max(2 * last, loop.every):
            return True
        root = captured.root
        if loop.news and self._told.get(root, 0) < MOST_NEWS:
            self._told[root] = self._told.get(root, 0) + 1
            return True
        if any(last < again <= step for again in AGAIN):
            return True
        return step == 2 and last < 2 and captured.root not in self._awake  # branches that start at zero moved since

    def _run(self, loop: Loop, step: int, replay: Replay, first: bool) -> None:
        relation = told(replay)
        functions = Functions()

        self._say(loop, EVAL, step, lambda: modes.look_at_eval(replay))
        self._say(loop, DROPOUT, step, lambda: drops(replay, functions))
        if functions.masks:
            self._say(loop, PADDING, step, lambda: reversed_masks(replay, functions.masks))
        if functions.rounded:
            loop.found(
                PRECISION, functions.rounded[0] + ": neighbours share one", step=step, margin=-1.0, where="positions",
                severity=Severity.WARN, evidence=f"{len(functions.rounded)} such calls in two forwards, before any rounding "
                "of what is made of them",
            )  # fmt: skip
        if first:
            self._say(loop, TWINS, step, lambda: parts_differ(replay))
        if replay.may_jitter:
            self._awake.add(replay.captured.root)
            self._say(loop, COLLAPSE, step, lambda: one_answer(replay))
        self._say(loop, CAUSALITY, step, lambda: causal(replay, relation))
        if replay.may_jitter or step >= 2:
            self._say(loop, INPUTS, step, lambda: inputs_matter(replay, functions))
        self._say(loop, BATCH, step, lambda: samples_apart(replay))
        if relation == "same" and loop.spec.causal is None:
            self._say(loop, TARGETS, step, lambda: copies(replay))

    def _say(self, loop: Loop, rule: Rule, step: int, look: Callable[[], Outcome]) -> None:
        """Runs one probe; what it cannot decide is named at the end, where nothing else decided it."""
        try:
            outcome = look()
        except NotRun as reason:
            self._reasons.setdefault(rule.id, str(reason))
            return
        except Exception as error:
            if from_signal(error):
                raise
            text = (str(error).strip().splitlines() or [""])[0]
            self._reasons.setdefault(rule.id, f"a replay raised {type(error).__name__}: {text}")
            return
        if isinstance(outcome, Held):
            loop.held_for(rule, step)
            return
        for f in outcome:
            margin = f.margin if f.margin is not None and f.margin < 0 else -1.0

            def describe(f: Any = f, news: str = self._news) -> dict[str, Any]:
                evidence = f"{f.evidence}; since it was looked at last: {news}" if news else f.evidence
                return {
                    "message": f.message, "where": f.where, "evidence": evidence, "severity": Severity(f.severity.value)
                }  # fmt: skip

            loop.judge(rule, step, margin, describe)

    def finish(self, loop: Loop) -> None:
        for rule in self.rules:
            if not loop.tallies[rule.id].checks:
                loop.not_checked(rule, self._reasons.get(rule.id, "no forward of the model with gradients was seen"))

    def drop(self) -> None:
        self._probed, self._awake = {}, set()
