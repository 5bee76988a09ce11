"""RUN-23, 24, 25, 27, 30, 31: the forward of the first step, and of every K, run again a dozen times with inputs changed.

The probes are those of preflight; what is particular here is that the targets are read off the gradient, so that a
next-token model is known as one without being declared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from karat.invariants.run.rule import Rule, Severity
from karat.invariants.run.run23_causality import RULE as CAUSALITY
from karat.invariants.run.run24_batch_independence import RULE as BATCH
from karat.invariants.run.run25_eval_determinism import RULE as EVAL
from karat.invariants.run.run27_dropout import RULE as DROPOUT
from karat.invariants.run.run30_twins import RULE as TWINS
from karat.invariants.run.run31_inputs import RULE as INPUTS
from karat.invariants.run.run36_collapse import RULE as COLLAPSE
from karat.invariants.run.run39_targets import RULE as TARGETS
from karat.invariants.runtime.preflight import batches, causality, modes, positions, twins
from karat.invariants.runtime.preflight.inputs import answer, jittered, others
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, some
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.functions import Functions, mixes
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.outputs import differ, spread_of
from karat.invariants.runtime.watching.replay import Replay, refusal, uncompiled
from karat.invariants.runtime.watching.tokens import relation, token_inputs

ANSWER = 0.05
"""The effect of a target on its own output, over that of the input at the same position, from which on it is an answer."""
MOST_DROPPED = 0.8
MOST_COMPARED = 1 << 16


class Probes(Check):
    rules = (CAUSALITY, BATCH, EVAL, DROPOUT, TWINS, INPUTS)
    interval = "first step, every K"

    def __init__(self) -> None:
        self._probed: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._awake: set[str] = set()

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if captured is None or not self._due(loop, captured, moment.step):
            return
        first = captured.root not in self._probed
        self._probed[captured.root] = moment.step
        why = refusal(captured)
        if why:
            self._reasons.update({rule.id: why for rule in self.rules})
            return
        trained = {n: p for n, p in captured.module.named_parameters() if p.requires_grad}
        with uncompiled(), captured.undisturbed():
            replay = Replay(captured, loop.spec, trained)
            try:
                self._run(loop, moment.step, replay, first)
            finally:
                replay.calm()

    def _due(self, loop: Loop, captured: Captured, step: int) -> bool:
        last = self._probed.get(captured.root)
        if last is None or step - last >= loop.every:
            return True
        return step == 2 and last < 2 and captured.root not in self._awake  # branches that start at zero moved since

    def _run(self, loop: Loop, step: int, replay: Replay, first: bool) -> None:
        told = _told(replay)
        functions = Functions()

        self._say(loop, EVAL, step, lambda: modes.look_at_eval(replay))
        self._say(loop, DROPOUT, step, lambda: _dropout(replay, functions))
        if first:
            self._say(loop, TWINS, step, lambda: _twins(replay))
        if replay.may_jitter:
            self._awake.add(replay.captured.root)
            self._say(loop, COLLAPSE, step, lambda: _one_answer(replay))
        self._say(loop, CAUSALITY, step, lambda: _causality(replay, told))
        if replay.may_jitter or step >= 2:
            self._say(loop, INPUTS, step, lambda: _inputs(replay, functions))
        self._say(loop, BATCH, step, lambda: _batches(replay))
        if told == "same" and loop.spec.causal is None:
            self._say(loop, TARGETS, step, lambda: _copies(replay))

    def _say(self, loop: Loop, rule: Rule, step: int, look: Callable[[], Outcome]) -> None:
        """Runs one probe; what it cannot decide is named at the end, where nothing else decided it."""
        try:
            outcome = look()
        except NotRun as reason:
            self._reasons.setdefault(rule.id, str(reason))
            return
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            self._reasons.setdefault(rule.id, f"a replay raised {type(error).__name__}: {text}")
            return
        if isinstance(outcome, Held):
            loop.held_for(rule, step)
            return
        for f in outcome:
            margin = f.margin if f.margin is not None and f.margin < 0 else -1.0

            def describe(f: Any = f) -> dict[str, Any]:
                return {
                    "message": f.message, "where": f.where, "evidence": f.evidence, "severity": Severity(f.severity.value)
                }  # fmt: skip

            loop.judge(rule, step, margin, describe)

    def finish(self, loop: Loop) -> None:
        for rule in self.rules:
            if not loop.tallies[rule.id].checks:
                loop.not_checked(rule, self._reasons.get(rule.id, "no forward of the model with gradients was seen"))

    def drop(self) -> None:
        self._probed, self._awake = {}, set()


def _told(replay: Replay) -> str:
    """How the targets lie to the input tokens, noted for the probes: "next", "same" and so on, "" where not known."""
    captured = replay.captured
    reading = captured.readings.get(captured.main) if captured.main is not None else None
    if reading is None:
        return ""
    inputs = token_inputs(captured.inputs, reading.targets.shape)
    found = {path: relation(tokens, reading.targets) for path, tokens in inputs.items()}
    following = [path for path, name in found.items() if name in ("next", "rolled")]
    if inputs:
        replay.notes["next token"] = len(following) == 1
    if len(following) == 1:
        replay.notes["sequence"] = following[0]
        if captured.main is not None and reading.counts.shape == captured.outputs[captured.main].shape[:2]:
            replay.notes["counted"] = reading.counts
        return "next"
    if len(found) == 1 and "same" in found.values():
        replay.notes["sequence"] = next(iter(found))
        return "same"
    return ""


def _one_answer(replay: Replay) -> Outcome:
    """Whether outputs are the same for samples that differ, with noise on all weights, so that no zero explains it."""
    _, base = jittered(replay)
    if not base.ndim or base.shape[0] < 4 or not differ(replay.captured, base.shape[0]):
        raise NotRun("a batch of fewer than four samples, or of equal ones")
    if not spread_of(base).equal or float(base.abs().max()) == 0:
        return Held("outputs differ between samples")
    message = f"the outputs are the same for all {base.shape[0]} samples of a batch that differ, whatever the weights"
    return [causality.RULE.warn(message, replay.captured.root, evidence="noise on all weights changes nothing of it")]


def _twins(replay: Replay) -> Outcome:
    """As in preflight; and slices of a parameter that are equal and get equal gradients."""
    found = []
    for name, p in replay.trainable.items():
        g = p.grad
        if g is None or p.ndim < 2 or p.numel() > MOST_COMPARED or g.layout is not torch.strided or p.is_complex():
            continue
        for axis, size in enumerate(p.shape):
            value, slope = p.detach().transpose(0, axis), g.detach().transpose(0, axis)
            if size > 1 and bool((value == value[:1]).all() and (slope == slope[:1]).all() and slope.any()):
                message = (
                    f"all {size} slices of {name} along axis {axis} are equal and get equal gradients: they stay one"
                )
                found.append(twins.RULE.warn(message, name, evidence="equal bits in value and gradient"))
                break
    outcome = twins.look(replay)
    return [*found, *outcome] if isinstance(outcome, list) else (found or outcome)


def _batches(replay: Replay) -> Outcome:
    """As in preflight; where it is declared, batch norm that acts in training is named too."""
    outcome = batches.look(replay)
    if not replay.spec.batch_independent or not isinstance(outcome, Held):
        return outcome
    norms = [n for n, m in replay.model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms:
        return outcome
    message = f"in train mode samples see each other through {some(norms)}; in eval mode they do not"
    return [batches.RULE.warn(message, norms[0], evidence="batch norm in train mode, Spec(batch_independent=True)")]


def _causality(replay: Replay, told: str) -> Outcome:
    """As in preflight; where the targets were read off the gradient, an output that depends on its own target fails."""
    outcome = causality.look(replay)
    if isinstance(outcome, Held) or replay.spec.causal or told != "next" or "counted" not in replay.notes:
        return outcome
    share, place = _answer_read(replay)
    if share < ANSWER:
        return outcome
    f = outcome[0]
    where = f", first in {f.where}" if f.where else ""
    message = (
        f"the model reads its answers: output {place} changes when input {place + 1} does, which is its target{where}"
    )
    evidence = f"{share:.0%} of what input {place} does to it; the targets are the inputs shifted by one"
    return [causality.RULE.fail(message, f.where, margin=f.margin, evidence=evidence)]


def _answer_read(replay: Replay) -> tuple[float, int]:
    """The effect of an output's own target on it, over that of the input at its position; and at which position."""
    path, counted = replay.notes["sequence"], replay.notes["counted"]
    call, base = jittered(replay)
    x = call.inputs[path]
    new = others(x, torch.Generator().manual_seed(8))
    worst, place = 0.0, 0
    for t in sorted({x.shape[1] // 4, x.shape[1] // 2}):
        rows = counted[:, t]
        if not bool(rows.any()):
            continue
        effects = []
        for at in (t, t + 1):
            changed = x.clone()
            changed[:, at] = new[:, at]
            effects.append(float((answer(replay, {path: changed}) - base)[rows, t].abs().double().mean()))
        share = effects[1] / max(effects[0], 1e-12)
        if share > worst:
            worst, place = share, t
    return worst, place


def _inputs(replay: Replay, functions: Functions) -> Outcome:
    """As in preflight; positions need not mix in a model that has nothing to mix them with."""
    reading = replay.captured.readings.get(replay.captured.main or ())
    batched = [t for t in replay.captured.inputs.values() if t.ndim and reading is not None and len(t) == reading.rows]
    several = reading is not None and reading.rows >= 4 and len(torch.unique(reading.targets)) > 1
    if reading is not None and several and batched and all(bool((t == t[:1]).all()) for t in batched):
        message = f"all {reading.rows} samples of the inputs are the same, their targets are not"
        return [positions.RULE.warn(message, evidence="equal bits in every input of the batch")]
    if functions.lengths and all(lengths == (1, 1) for lengths in functions.lengths) and not _single(replay):
        message = (
            f"all {len(functions.lengths)} attentions run over one position: each position sees itself alone "
            "(a missing or exchanged axis; nn.MultiheadAttention takes positions first unless batch_first=True)"
        )
        return [positions.RULE.warn(message, evidence="queries and keys of length 1 in every call")]
    outcome = positions.look(replay)
    if isinstance(outcome, Held) or mixes(replay.model, functions):
        return _softened(outcome)
    kept = [f for f in outcome if not f.message.startswith(positions.OWN_POSITION)]
    return (
        _softened(kept)
        if kept
        else Held("the output changes with its inputs; the model has nothing that mixes positions")
    )


def _softened(outcome: Outcome) -> Outcome:
    """No more than WARN: a model may be meant to answer the same to everything, as a learnt constant does."""
    if isinstance(outcome, Held):
        return outcome
    return [positions.RULE.warn(f.message, f.where, margin=f.margin, evidence=f.evidence) for f in outcome]


def _single(replay: Replay) -> bool:
    """Whether the inputs themselves are sequences of length one."""
    sized = [t for t in replay.captured.inputs.values() if t.ndim >= 2 and t.dtype is not torch.bool]
    return any(t.shape[1] == 1 for t in sized)


def _dropout(replay: Replay, functions: Functions) -> Outcome:
    """As in preflight; and a rate so high that it was meant to be the share that is kept. Notes the functions called."""
    outcome: Outcome | None = None
    with functions:
        try:
            outcome = modes.look_at_dropout(replay)
        except NotRun as reason:
            why = reason
            replay.forward(training=True)
    high = [p for p in functions.rates if MOST_DROPPED < p < 1]
    if high and not isinstance(outcome, list):
        message = f"dropout drops {max(high):g} of the units: p is the share that is dropped, not the one that is kept"
        return [
            modes.DROPOUT.warn(message, evidence=f"{len(high)} of {len(functions.rates)} calls above {MOST_DROPPED}")
        ]
    if outcome is None:
        raise why
    return outcome


def _copies(replay: Replay) -> Outcome:
    """Targets that are the inputs themselves, of a model that sees what came before and nothing that comes after."""
    replay.notes["next token"] = True  # so that causality is looked at
    replay.notes.pop("counted", None)
    seen = causality.look(replay)
    mixed = positions.look(replay)
    if not isinstance(seen, Held) or not isinstance(mixed, Held):
        return Held("the targets are the inputs, of a model that is not causal")
    message = (
        "the targets are the inputs themselves, not shifted, and the model is causal: it learns to copy "
        "the token that it is given"
    )
    return [causality.RULE.warn(message, evidence="read off the gradient at the logits")]
