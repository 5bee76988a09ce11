"""The probes of preflight as a watched loop runs them: on a replay, with the targets read off the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from karat.invariants.runtime.preflight import batches, causality, modes, positions, twins
from karat.invariants.runtime.preflight.inputs import answer, called, is_other, jittered, others
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, some
from karat.invariants.runtime.preflight.traces import roughly
from karat.invariants.runtime.preflight.trees import Path, leaves
from karat.invariants.runtime.watching.functions import Functions, mixes
from karat.invariants.runtime.watching.outputs import differ, spread_of
from karat.invariants.runtime.watching.replay import Replay
from karat.invariants.runtime.watching.tokens import relation, token_inputs

ANSWER = 0.05
"""The effect of later inputs on an output, over that of the input at its position, from which on they are an answer."""
MOST_DROPPED = 0.8
MOST_COMPARED = 1 << 16


def told(replay: Replay) -> str:
    """How the targets lie to the input tokens, noted for the probes: "next", "same" and so on, "" where not known."""
    captured = replay.captured
    reading = captured.readings.get(captured.main) if captured.main is not None else None
    if reading is None:
        return ""
    tokens = token_inputs(captured.inputs, reading.targets.shape)
    inputs = {path: t for path, t in tokens.items() if not is_other(captured.module, path)}
    found = {path: relation(tokens, reading.targets) for path, tokens in inputs.items()}
    following = [path for path, name in found.items() if name in ("next", "rolled")]
    if inputs:
        replay.notes["next token"] = len(following) == 1
    if len(following) == 1:
        replay.notes["sequence"] = following[0]
        if captured.main is not None and reading.counts.shape == captured.outputs[captured.main].shape[:2]:
            replay.notes["counted"] = reading.counts
        return "next"
    if set(found.values()) == {"same"}:  # several: the labels are given too
        replay.notes["sequence"] = next(iter(found))
        return "same"
    return ""


def one_answer(replay: Replay) -> Outcome:
    """Whether outputs are the same for samples that differ, with noise on all weights, so that no zero explains it."""
    _, base = jittered(replay)
    if not base.ndim or base.shape[0] < 4 or not differ(replay.captured, base.shape[0]):
        raise NotRun("a batch of fewer than four samples, or of equal ones")
    if not spread_of(base).equal or float(base.abs().max()) == 0:
        return Held("outputs differ between samples")
    message = f"the outputs are the same for all {base.shape[0]} samples of a batch that differ, whatever the weights"
    return [causality.RULE.warn(message, replay.captured.root, evidence="noise on all weights changes nothing of it")]


def parts_differ(replay: Replay) -> Outcome:
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


def samples_apart(replay: Replay) -> Outcome:
    """As in preflight; where it is declared, batch norm that acts in training is named too."""
    outcome = batches.look(replay)
    if not replay.spec.batch_independent or not isinstance(outcome, Held):
        return outcome
    norms = [n for n, m in replay.model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms:
        return outcome
    message = f"in train mode samples see each other through {some(norms)}; in eval mode they do not"
    return [batches.RULE.warn(message, norms[0], evidence="batch norm in train mode, Spec(batch_independent=True)")]


def causal(replay: Replay, told: str) -> Outcome:
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
    evidence = f"later inputs do {share:.0%} of what input {place} does; the targets are the inputs shifted by one"
    return [causality.RULE.fail(message, f.where, margin=f.margin, evidence=evidence)]


def _answer_read(replay: Replay) -> tuple[float, int]:
    """The effect of all later inputs on an output that depends on its own target, over that of the input at its
    position; and at which position it is largest. 0 where no output that counts depends on its target."""
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
        for at in (slice(t, t + 1), slice(t + 1, t + 2), slice(t + 1, None)):
            changed = x.clone()
            changed[:, at] = new[:, at]
            effects.append((answer(replay, {path: changed}) - base)[rows, t].abs().double())
        if float(effects[1].max()) <= roughly(base):
            continue
        share = float(effects[2].mean()) / max(float(effects[0].mean()), 1e-12)
        if share > worst:
            worst, place = share, t
    return worst, place


def follows_in_place(replay: Replay, path: Path) -> bool:
    """Whether the output at a position depends on the input at it, of outputs (B, T, …)."""
    base, x = called(replay)[1], replay.captured.inputs[path]
    if base.ndim < 3 or base.shape[:2] != x.shape[:2]:
        return False
    place, changed = x.shape[1] // 2, x.clone()
    changed[:, place] = others(x, torch.Generator().manual_seed(9))[:, place]
    moved = (answer(replay, {path: changed}) - base)[:, place].abs()
    return float(moved.max()) > roughly(base)


def inputs_matter(replay: Replay, functions: Functions) -> Outcome:
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


def fed_zeros(replay: Replay, parameters: Mapping[str, Tensor]) -> Outcome:
    """Why weights have a gradient of zeros throughout: the module that holds them is given nothing but zeros, or runs a
    recurrence over one position from a state of zeros."""
    owners = {name: m for name, m in replay.model.named_modules() if any(
        id(p) == id(q) for q in parameters.values() for p in m.parameters(recurse=False))}  # fmt: skip
    zeros: dict[str, list[bool]] = {}
    single: set[str] = set()

    def note(name: str, args: Any, output: Any) -> None:
        given = [t for _, t in leaves(args) if t.is_floating_point() and t.numel()]
        zeros.setdefault(name, []).append(bool(given) and not any(bool(t.any()) for t in given))
        module = owners[name]
        if not isinstance(module, nn.RNNBase) or not given or given[0].ndim != 3:
            return
        if given[0].shape[1 if module.batch_first else 0] == 1 and not any(bool(t.any()) for t in given[1:]):
            single.add(name)

    replay.forward(training=True, watched=owners, seen=note)
    fed = [name for name, seen in zeros.items() if all(seen)]
    found = []
    if fed:
        message = f"the input of {some(fed)} is zero throughout: nothing comes in, and its weights get no gradient"
        found.append(positions.RULE.warn(message, fed[0], evidence="gradients of zeros in the first steps"))
    for name in single - set(fed):
        message = (
            f"{name} runs over sequences of length one, from a state of zeros: nothing recurs (an axis exchanged?)"
        )
        found.append(positions.RULE.warn(message, name, evidence="the recurrent weights get no gradient"))
    return found or Held("modules whose weights get no gradient are given more than zeros")


def _softened(outcome: Outcome) -> Outcome:
    """No more than WARN: a model may be meant to answer the same to everything, as a learnt constant does."""
    if isinstance(outcome, Held):
        return outcome
    return [positions.RULE.warn(f.message, f.where, margin=f.margin, evidence=f.evidence) for f in outcome]


def _single(replay: Replay) -> bool:
    """Whether the inputs themselves are sequences of length one."""
    sized = [t for t in replay.captured.inputs.values() if t.ndim >= 2 and t.dtype is not torch.bool]
    return any(t.shape[1] == 1 for t in sized)


def drops(replay: Replay, functions: Functions) -> Outcome:
    """As in preflight; and a rate so high that it was meant to be the share that is kept. Notes the functions called."""
    outcome: Outcome | None = None
    with functions:
        try:
            outcome = modes.look_at_dropout(replay)
        except NotRun as reason:
            why = str(reason)  # an exception that is kept holds this frame, and with it the batch
            replay.forward(training=True)
    high = [p for p in functions.rates if MOST_DROPPED < p < 1]
    if high and not isinstance(outcome, list):
        message = f"dropout drops {max(high):g} of the units: p is the share that is dropped, not the one that is kept"
        return [
            modes.DROPOUT.warn(message, evidence=f"{len(high)} of {len(functions.rates)} calls above {MOST_DROPPED}")
        ]
    if outcome is None:
        raise NotRun(why)
    return outcome


def copies(replay: Replay) -> Outcome:
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
