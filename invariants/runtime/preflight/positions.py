"""RUN-31: the inputs matter: every one of them, and in a model of tokens other positions than the output's own."""

from __future__ import annotations

import torch
from torch import Tensor

from karat.invariants.run.run31_inputs import RULE as INPUTS
from karat.invariants.runtime.preflight.inputs import (
    answer,
    argument,
    changeable,
    is_other,
    jittered,
    next_token,
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
LEAST_LENGTH = 8
"""Positions of a sequence of which the halves are compared."""
OWN_POSITION = "each output depends on the input at its own position alone"


def look(subject: Probed) -> Outcome:
    """Each input is replaced as a whole, then single positions of the sequence, with noise on all weights."""
    call, base = jittered(subject)
    seen, findings = _positions(subject, call, base)
    idle = _without_effect(subject, call, base, seen)
    tried = [path for path in _plain(subject, call, base) if path not in idle]
    if not tried and not idle:
        raise NotRun("the network has no tensor input of numbers or tokens")
    if not tried:
        message = "the output is the same whatever the input: the model does not see its data"
        evidence = f"no change over all of {', '.join(spelled(p[1:]) for p in idle)}"
        return [RULE.fail(message, margin=RULE.margin(len(idle), 0), evidence=evidence)]
    findings += [
        RULE.warn(
            f"the input {_spoken(subject, p)} has no effect on the output",
            spelled(p[1:]),
            margin=RULE.margin(1, 0),
            evidence="no change at all",
        )
        for p in idle
    ]
    return findings or Held("the output changes with " + ", ".join(spelled(p[1:]) for p in tried))


def _plain(subject: Probed, call: Call, base: Tensor) -> dict[Path, Tensor]:
    """Inputs whose values may be replaced by others: no masks, labels or indices."""
    return {
        path: t for path, t in call.inputs.items()
        if t.numel() > 1 and t.dtype is not torch.bool and not t.is_complex()
        and not is_other(subject.network, path)
        and changeable(t) and not (base.ndim and structural(t, base.shape[0]))
    }  # fmt: skip


def _without_effect(subject: Probed, call: Call, base: Tensor, seen: list[Path]) -> list[Path]:
    """Those that change no output at all: one that only a loss among the outputs depends on has its effect there."""
    generator = torch.Generator().manual_seed(4)
    idle = []
    before: tuple[Tensor, ...] | None = None
    for path, x in _plain(subject, call, base).items():
        if path in seen:
            continue
        new = others(x, generator)
        changed = subject.forward({path: new})
        if changed is None or changed.output is None or not _equal(changed.output, base):
            continue
        if before is None:
            again = subject.forward()
            before = again.outputs if again is not None else ()
        pairs = zip(changed.outputs, before, strict=False)
        if len(changed.outputs) == len(before) and all(_equal(a, b) or _equal(a, new) for a, b in pairs):
            idle.append(path)
    return idle


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def _spoken(subject: Probed, path: Path) -> str:
    """Its place, and the name that the network has for it."""
    name = argument(subject.network, path)
    return spelled(path[1:]) + (f" ({name})" if name and name not in path else "")


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
            return [path], _halves(subject, path, x, new, base)
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


def _halves(subject: Probed, path: Path, x: Tensor, new: Tensor, base: Tensor) -> list[Finding]:
    """In a next-token model, whether the second half of the positions depends on the first: not where the axes of time and
    heads were exchanged by a view, so that each head has a piece of the sequence for its own."""
    half = x.shape[1] // 2
    if x.shape[1] < LEAST_LENGTH or not next_token(subject, x):
        return []
    changed = x.clone()
    changed[:, :half] = new[:, :half]
    moved = (answer(subject, {path: changed}) - base).abs().flatten(2).amax((0, 2))
    if float(moved[half:].max()) > 0 or not float(moved[1:half].min()) > roughly(base):
        return []
    message = (
        f"no output from position {half} on depends on any input before {half}: the sequence is cut in pieces that do not see "
        "each other (a view or reshape to heads without transpose, which gives each head a piece of the time)"
    )
    evidence = f"all inputs before {half} of {x.shape[1]} changed; not one bit of the outputs from there on did"
    return [RULE.warn(message, subject.spec.network, margin=RULE.margin(1, 0), evidence=evidence)]


PROBE = RULE.probe(look)
