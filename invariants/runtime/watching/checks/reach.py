"""RUN-8 and RUN-34: what the loss depends on gets a gradient.

A parameter that has none, or one of zeros, is moved a little and the kept forward is run again. The outputs change in the
direction of their own gradient, and no path of autograd leads to it: it was cut off. Every path goes through a rounding
or a sign, or the outputs change in jumps only: its gradient was lost there. All else may be meant: experts that are not
chosen, branches that start at zero, gradients that the loop takes away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE as REACH
from karat.invariants.run.run34_straight_through import RULE as THROUGH
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.loop import Held, Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.probing import SLIGHT, STRONG, Probe
from karat.invariants.runtime.watching.reduction import is_zero
from karat.invariants.runtime.watching.seams import Seams

MOST_TRIED = 24
"""Parameters that are moved one by one in a step."""
MOST_PROBES = 6
"""Steps of an optimizer, beyond the first ones, in which the forward is run again."""
ALL_ZERO = 3
"""First steps in a row in which every gradient is zero, until that is said."""


@dataclass
class Seen:
    """Of one optimizer, by the ids of its parameters. reached: had a gradient that is not zero. settled: nothing more is
    to be said. since: the step from which on it is silent. versions: counters of changes when first seen silent."""

    reached: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    since: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    probes: int = 0
    zeros: int = 0
    watched: bool = True


class Reach(Check):
    rules = (REACH, THROUGH)

    def __init__(self) -> None:
        self._seen: dict[int, Seen] = {}
        self._seams = Seams()
        self._read = 0

    def start(self, loop: Loop) -> None:
        self._seen = {place: Seen() for place in range(len(loop.optimizers))}
        self._seams.attach(loop)
        self._read = loop.renamed

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._read != loop.renamed:
            self._renamed(loop)
        seen, norms = self._seen[moment.index], moment.norms
        if not seen.watched and not moment.missing and 0.0 not in norms.values():
            loop.held_for(REACH, moment.step)
            return
        if seen.probes >= MOST_PROBES and not seen.watched and not loop.dense(moment.step):
            return
        held = moment.held
        silent = [
            i for i in moment.missing if (p := held[i].parameter).requires_grad and id(p) not in seen.settled
        ]  # fmt: skip
        if 0.0 in norms.values():
            silent += [i for i, n in norms.items() if n == 0 and id(held[i].parameter) not in seen.settled]
        if seen.watched:
            seen.reached.update(id(held[i].parameter) for i, n in norms.items() if n != 0)
        silent = [i for i in silent if self._expected(loop, held[i]) and _is_silent(held[i].parameter)]
        if silent:
            self._silent(loop, moment, seen, silent)
        elif moment.whole:
            loop.held_for(REACH, moment.step)
            loop.held_for(THROUGH, moment.step)
        if seen.watched and moment.step + 1 >= loop.spec.window:
            self._window_ends(loop, moment, seen)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self._seams.renew(loop)

    def drop(self) -> None:
        self._seen = {}
        self._seams.drop()

    def _renamed(self, loop: Loop) -> None:
        """Forgets what was noted of parameters that are gone: their ids may be those of others now."""
        self._read = loop.renamed
        for place, seen in self._seen.items():
            now = {id(h.parameter) for h in loop.held[place]}
            seen.reached &= now
            seen.settled &= now
            seen.since = {key: step for key, step in seen.since.items() if key in now}
            seen.versions = {key: version for key, version in seen.versions.items() if key in now}

    def _expected(self, loop: Loop, held: Held) -> bool:
        spec, p = loop.spec, held.parameter
        if not held.name or not p.requires_grad or not p.numel():
            return False
        return not covered(held.name, spec.frozen) and not covered(held.name, spec.detached)

    def _silent(self, loop: Loop, moment: Moment, seen: Seen, silent: list[int]) -> None:
        held = moment.held
        for i in silent:
            key = id(held[i].parameter)
            if key not in seen.since:
                seen.since[key], seen.versions[key] = moment.step, held[i].parameter._version
        for key in [k for k in seen.since if k not in {id(held[i].parameter) for i in silent}]:
            if moment.whole:
                del seen.since[key]
        self._all_zero(loop, moment, seen, silent)
        if seen.probes >= MOST_PROBES and not loop.dense(moment.step):
            return
        captured = loop.captured
        if captured is None:
            loop.capture_next = True
            self._by_seams(loop, moment, seen, silent)
            return
        if _several_processes():
            loop.not_checked(THROUGH, "with several processes a forward is not run again by one of them")
            return
        seen.probes += not loop.dense(moment.step)
        named = {held[i].name: held[i].parameter for i in silent}
        with captured.undisturbed():
            probe = Probe(captured)
            cut, lost, by = _judged(probe, named) if probe.able else ({}, {}, "")
        if not probe.able:
            self._by_seams(loop, moment, seen, silent)
        cut = {} if _is_copy(loop, cut) else cut
        step = min((seen.since[id(p)] for p in (*cut.values(), *lost.values())), default=moment.step)
        if cut:
            self._say_cut(loop, step, cut, "something between cuts it (detach, no_grad, .data, a new tensor)",
                          "moved a little, the outputs follow, and no path of autograd leads to it")  # fmt: skip
        if lost:
            self._say_lost(loop, step, lost, by)
        seen.settled.update(id(p) for p in (*cut.values(), *lost.values()))

    def _by_seams(self, loop: Loop, moment: Moment, seen: Seen, silent: list[int]) -> None:
        """Without a forward of the whole model: where one submodule's output goes into another without its graph."""
        held = {moment.held[i].name: moment.held[i].parameter for i in silent}
        trained = {id(moment.held[i].parameter) for i, norm in moment.norms.items() if norm != 0}
        for seam in self._seams.found():
            cut = {name: p for name, p in held.items() if id(p) in seam.before}
            every = len(cut) == len([h for h in moment.held if id(h.parameter) in seam.before])
            if cut and every and trained & seam.after and not _is_copy(loop, cut):
                step = min(seen.since[id(p)] for p in cut.values())
                self._say_cut(loop, step, cut, f"the output of {seam.giver} goes into {seam.taker} {seam.how}",
                              f"the input of {seam.taker} has the numbers of that output, but not its graph")  # fmt: skip
                seen.settled.update(id(p) for p in cut.values())

    def _say_cut(self, loop: Loop, step: int, cut: dict[str, Tensor], why: str, evidence: str) -> None:
        names = list(loop.parameters)
        loop.judge(
            REACH, step, REACH.margin(len(cut), 0),
            lambda: {
                "message": f"the outputs depend on {spoken(cut, names)}, but backward gives "
                f"{'them' if len(groups(cut, names)) > 1 else 'it'} no gradient: {why}",
                "where": next(iter(groups(cut, names))),
                "evidence": f"{len(cut)} of {len(names)} parameters: {evidence}",
            },
        )  # fmt: skip

    def _say_lost(self, loop: Loop, step: int, lost: dict[str, Tensor], by: str) -> None:
        names = list(loop.parameters)
        how = f"every path to it goes through {by}, whose gradient is zero" if by else (
            "the outputs change in jumps only: a comparison, argmax or cast to integers is between"
        )  # fmt: skip
        loop.judge(
            THROUGH, step, THROUGH.margin(len(lost), 0),
            lambda: {
                "message": f"{spoken(lost, names)} gets no gradient: {how}; a straight-through gradient is missing",
                "where": next(iter(groups(lost, names))),
                "evidence": f"moved, the outputs follow; the gradient is zero for {some(lost)}",
            },
        )  # fmt: skip

    def _all_zero(self, loop: Loop, moment: Moment, seen: Seen, silent: list[int]) -> None:
        """Every gradient is there, and every one is zero, from the first step on."""
        zero = bool(moment.norms) and moment.whole and all(n == 0 for n in moment.norms.values()) and not seen.reached
        seen.zeros = seen.zeros + 1 if zero else 0
        if seen.zeros == ALL_ZERO:
            loop.judge(
                REACH, moment.step, REACH.margin(len(silent), 0),
                lambda: {
                    "message": f"every gradient is exactly zero, {ALL_ZERO} steps in a row: the loss does not depend on "
                    "the model",
                    "where": "", "evidence": f"{len(silent)} gradients, all of zeros",
                },
            )  # fmt: skip

    def _window_ends(self, loop: Loop, moment: Moment, seen: Seen) -> None:
        """What never got a gradient within the window, said once."""
        seen.watched = False
        unused = {
            h.name: h.parameter for h in moment.held
            if id(h.parameter) not in seen.reached and id(h.parameter) not in seen.settled
            and self._expected(loop, h) and _is_silent(h.parameter)
            and seen.versions.get(id(h.parameter), h.parameter._version) == h.parameter._version
        }  # fmt: skip
        if unused and seen.reached:
            names = list(loop.parameters)
            loop.judge(
                REACH, moment.step, REACH.margin(len(unused), 0),
                lambda: {
                    "message": f"{spoken(unused, names)} not used by the loss in {moment.step + 1} steps: not called, or "
                    "the output unused",
                    "where": next(iter(groups(unused, names))), "severity": Severity.WARN,
                    "evidence": f"no gradient, or one of zeros, for {len(unused)} parameters that the optimizer holds",
                },
            )  # fmt: skip


def _is_silent(parameter: Tensor) -> bool:
    return parameter.grad is None or is_zero(parameter.grad)


def _several_processes() -> bool:
    parallel = torch.distributed
    return parallel.is_available() and parallel.is_initialized() and parallel.get_world_size() > 1


def _judged(probe: Probe, silent: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Those that were cut off; those whose gradient is lost in jumps; and by which operations."""
    every, open_ = probe.routes()
    unreached = {n: p for n, p in silent.items() if id(p) not in every.leaves} if every.certain else {}
    stepped = {n: p for n, p in silent.items() if id(p) in every.leaves and id(p) not in open_.leaves}
    cut: dict[str, Tensor] = {}
    lost: dict[str, Tensor] = {}
    for name, p in list(_those_that_matter(probe, unreached).items())[:MOST_TRIED]:
        if probe.change([p], SLIGHT).real and probe.smooth([p], SLIGHT):
            cut[name] = p
        elif probe.change([p], STRONG).real:
            lost[name] = p
    if cut and len(unreached) > MOST_TRIED:
        tops = {name.partition(".")[0] for name in cut}
        cut |= {n: p for n, p in unreached.items() if n.partition(".")[0] in tops and n not in lost}
    by = ""
    if open_.whole:
        through = {n: p for n, p in list(stepped.items())[:MOST_TRIED] if probe.change([p], STRONG).real}
        if through:
            by = " or ".join(sorted({kind.partition("Backward")[0].lower() for kind in every.kinds - open_.kinds}))
        if through and not lost:
            return cut, through, by
        lost |= through
    return cut, lost, by


def _those_that_matter(probe: Probe, unreached: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of them where moving all together changes the loss, else none."""
    together = list(unreached.values())
    if together and (probe.change(together, SLIGHT).real or probe.change(together, STRONG).real):
        return unreached
    return {}


def _is_copy(loop: Loop, cut: dict[str, Tensor]) -> bool:
    """Whether all are equal to other parameters of the same shape: a teacher or target that is to follow its student."""
    others = [p for n, p in loop.parameters.items() if n not in cut]
    telling = [p for p in cut.values() if p.numel() > 1 and bool((p != p.reshape(-1)[0]).any())]
    return bool(telling) and all(any(o.shape == p.shape and torch.equal(o, p) for o in others) for p in telling)
