"""Why a parameter has no gradient: decided on the kept forward, run again with parameters moved and put back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from karat.invariants.runtime.watching.probing import SLIGHT, STRONG, Probe, Routes
from karat.invariants.runtime.watching.reduction import is_zero

MOST_TRIED = 24
"""Parameters that are moved one by one in a step."""


@dataclass
class Seen:
    """Of one optimizer, by the ids of its parameters. reached: had a gradient that is not zero. settled: nothing more is
    to be said. since: the step from which on it is silent. versions: counters of changes when first seen silent, of those
    that have no gradient. without: their module runs under no_grad. at_times: silent in some steps, in others not."""

    reached: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    since: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    without: dict[int, str] = field(default_factory=dict)
    at_times: set[str] = field(default_factory=set)
    follows: set[int] = field(default_factory=set)
    probes: int = 0
    zeros: int = 0
    watched: bool = True


@dataclass
class Verdict:
    """Parameters by name. cut: the outputs follow them, and no path of autograd leads there. lost: every path goes through
    `by`, or (by is empty) the outputs follow in jumps only. without: their module runs under no_grad. asleep: all zero,
    and hold each other there. closed: only a strong move of them changes anything."""

    cut: dict[str, Tensor] = field(default_factory=dict)
    lost: dict[str, Tensor] = field(default_factory=dict)
    by: str = ""
    without: dict[str, Tensor] = field(default_factory=dict)
    asleep: dict[str, Tensor] = field(default_factory=dict)
    closed: dict[str, Tensor] = field(default_factory=dict)


def judged(probe: Probe, silent: Mapping[str, Tensor], *, lasting: bool) -> Verdict:
    """lasting: whether they were silent in all first steps, so that branches that start at zero have woken."""
    routes = probe.routes(silent)
    verdict = Verdict(without={n: p for n, p in silent.items() if id(p) in routes.without})
    rest = {n: p for n, p in silent.items() if n not in verdict.without}
    _unreached(probe, routes, rest, verdict)
    if routes.smooth.whole:
        stepped = {n: p for n, p in rest.items() if id(p) in routes.every.leaves and id(p) not in routes.smooth.leaves}
        through = {n: p for n, p in list(stepped.items())[:MOST_TRIED] if probe.change([p], STRONG).real}
        verdict.by = routes.every.steps if through and not verdict.lost else ""
        verdict.lost |= through
    if lasting:
        open_ = {n: p for n, p in rest.items() if p.grad is not None and id(p) in routes.smooth.leaves}
        _zeros(probe, open_, verdict)
    return verdict


def _unreached(probe: Probe, routes: Routes, rest: Mapping[str, Tensor], verdict: Verdict) -> None:
    """Those to which no path leads: tried together first, then each, for some may not be used at all."""
    if not routes.every.certain:
        return
    unreached = {n: p for n, p in rest.items() if id(p) not in routes.every.leaves}
    together = list(unreached.values())
    if not together or not (probe.change(together, SLIGHT).real or probe.change(together, STRONG).real):
        return
    for name, p in list(unreached.items())[:MOST_TRIED]:
        scale = (
            SLIGHT if probe.change([p], SLIGHT).real else STRONG
        )  # a slight move may be lost in the outputs' rounding
        if scale == STRONG and not probe.change([p], STRONG).real:
            continue
        (verdict.cut if probe.smooth([p], scale) else verdict.lost)[name] = p
    modules = {name.rpartition(".")[0] for name in verdict.cut}
    weak = [name for name in verdict.lost if name.rpartition(".")[0] in modules]  # as a bias of 0 beside a weight
    verdict.cut |= {name: verdict.lost.pop(name) for name in weak}
    if verdict.cut and len(unreached) > MOST_TRIED:
        tops = {name.partition(".")[0] for name in verdict.cut}
        verdict.cut |= {n: p for n, p in unreached.items() if n.partition(".")[0] in tops and n not in verdict.lost}


def _zeros(probe: Probe, silent: Mapping[str, Tensor], verdict: Verdict) -> None:
    zero = {n: p for n, p in silent.items() if not bool(p.detach().any())}
    if len(zero) > 1 and probe.change(list(zero.values()), STRONG).real:
        verdict.asleep = zero
    closed = {n: p for n, p in silent.items() if n not in verdict.asleep and n not in verdict.lost}
    every = list(closed.values())
    if closed and not probe.change(every, SLIGHT).real and probe.change(every, STRONG).real:
        verdict.closed = closed


def is_copy(cut: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> bool:
    """Whether all are equal to other parameters of the same shape: a teacher or target that is to follow its student."""
    others = [p for n, p in parameters.items() if n not in cut]
    telling = [p for p in cut.values() if p.numel() > 1 and bool((p != p.reshape(-1)[0]).any())]
    return bool(telling) and all(any(o.shape == p.shape and torch.equal(o, p) for o in others) for p in telling)


def alike(name: str) -> str:
    """The name without numbers: the same for the members of a list, such as experts."""
    return re.sub(r"\.\d+\.", ".*.", name)


def is_silent(parameter: Tensor) -> bool:
    return parameter.grad is None or is_zero(parameter.grad)


def several_processes() -> bool:
    parallel = torch.distributed
    return parallel.is_available() and parallel.is_initialized() and parallel.get_world_size() > 1
