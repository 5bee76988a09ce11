"""RUN-31: the inputs matter: every one of them, and in a model of tokens other positions than the output's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from karat.invariants.run.run31_inputs import RULE as INPUTS
from karat.invariants.runtime.preflight.inputs import (
    OTHER_THAN_TOKENS,
    answer,
    changeable,
    jittered,
    others,
    sequence,
    structural,
    time_is_second,
)
from karat.invariants.runtime.preflight.probe import Held, NotRun, Outcome, Says
from karat.invariants.runtime.preflight.probed import Call, Probed
from karat.invariants.runtime.preflight.report import Finding
from karat.invariants.runtime.preflight.traces import roughly
from karat.invariants.runtime.preflight.trees import Path, spelled

RULE = Says(INPUTS)
OWN_POSITION = "each output depends on the input at its own position alone"


def look(subject: Probed) -> Outcome:
    """Each input is replaced as a whole, then single positions of the sequence, with noise on all weights."""
    call, base = jittered(subject)
    seen, findings = _positions(subject, call, base)
    idle = _without_effect(subject, call, base, seen)
    tried = [path for path in _plain(call, base) if path not in idle]
    if not tried and not idle:
        raise NotRun("the network has no tensor input of numbers or tokens")
    if not tried:
        message = "the output is the same whatever the input: the model does not see its data"
        evidence = f"no change over all of {', '.join(spelled(p[1:]) for p in idle)}"
        return [RULE.fail(message, margin=RULE.margin(len(idle), 0), evidence=evidence)]
    for path in idle:
        message = f"the input {spelled(path[1:])} has no effect on the output"
        findings.append(RULE.warn(message, spelled(path[1:]), margin=RULE.margin(1, 0), evidence="no change at all"))
    return findings or Held("the output changes with " + ", ".join(spelled(p[1:]) for p in tried))


def _plain(call: Call, base: Tensor) -> dict[Path, Tensor]:
    """Inputs whose values may be replaced by others: no masks, labels or indices."""
    return {
        path: t for path, t in call.inputs.items()
        if t.numel() > 1 and t.dtype is not torch.bool and not t.is_complex()
        and not any(part in name for name in path for part in OTHER_THAN_TOKENS)
        and changeable(t) and not (base.ndim and structural(t, base.shape[0]))
    }  # fmt: skip


def _without_effect(subject: Probed, call: Call, base: Tensor, seen: list[Path]) -> list[Path]:
    generator = torch.Generator().manual_seed(4)
    idle = []
    for path, x in _plain(call, base).items():
        if path in seen:
            continue
        changed = subject.forward({path: others(x, generator)})
        if changed is not None and len(changed.outputs) == len(call.outputs) and _alike(changed.outputs, call.outputs):
            idle.append(path)
    return idle


def _alike(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Equal in every bit: the output that is probed, and the others, as a loss that a model makes of targets it is given."""
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _positions(subject: Probed, call: Call, base: Tensor) -> tuple[list[Path], list[Finding]]:
    """Whether a change at one position is seen at any other: the input that is, or what is wrong."""
    try:
        path, x = sequence(subject, call, base)
    except NotRun:
        return [], []
    generator, length = torch.Generator().manual_seed(5), x.shape[1]
    new = others(x, generator)
    for place in (0, length - 1, length // 2):
        changed = x.clone()
        changed[:, place] = new[:, place]
        moved = (answer(subject, {path: changed}) - base).abs().flatten(2).amax((0, 2))
        moved[place] = 0
        if float(moved.max()) > roughly(base):
            return [path], []
    if not time_is_second(subject, x):
        changed = x.clone()
        changed[0] = new[0]
        if float((answer(subject, {path: changed}) - base)[1:].abs().max()) > roughly(base):
            return [path], []  # the first axis is the one that is mixed: time first, as nn.LSTM has it
    message = (
        f"{OWN_POSITION}: nothing mixes positions "
        "(an attention over a sequence of length one, axes exchanged, or a model without context)"
    )
    evidence = f"positions 0, {length // 2}, {length - 1} of {length} changed"
    return [], [RULE.warn(message, subject.spec.network, margin=RULE.margin(1, 0), evidence=evidence)]


PROBE = RULE.probe(look)
