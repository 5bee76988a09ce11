"""RUN-8 and RUN-34: what the loss depends on gets a gradient.

A parameter that has none, or one of zeros, is moved a little and the kept forward is run again. The outputs change in the
direction of their own gradient, and no path of autograd leads to it: it was cut off. Every path goes through a rounding
or a sign, or the outputs change in jumps only: its gradient was lost there. All else may be meant: experts that are not
chosen, branches that start at zero, gradients that the loop takes away.
"""

from __future__ import annotations

from torch import Tensor

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE as REACH
from karat.invariants.run.run34_straight_through import RULE as THROUGH
from karat.invariants.run.spec import covered
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.loop import DENSE, Held, Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.probing import Probe
from karat.invariants.runtime.watching.seams import Seams
from karat.invariants.runtime.watching.silence import (
    Seen,
    Verdict,
    alike,
    is_copy,
    is_silent,
    judged,
    several_processes,
)

MOST_PROBES = 6
"""Steps of an optimizer, beyond the first ones, in which the forward is run again."""
ALL_ZERO = 3
"""First steps in a row in which every gradient is zero, until that is said."""


class Reach(Check):
    rules = (REACH, THROUGH)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._seen: dict[int, Seen] = {}
        self._seams = Seams()
        self._read = 0

    def start(self, loop: Loop) -> None:
        self._seen = {place: Seen() for place in range(len(loop.optimizers))}
        self._seams.attach(loop, self)
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
        silent = [i for i in silent if self._expected(loop, held[i]) and is_silent(held[i].parameter)]
        if moment.missing or moment.step == 0:
            self._switched_off(loop, moment, seen)
        if silent:
            self._silent(loop, moment, seen, silent)
        elif moment.whole:
            loop.held_for(REACH, moment.step)
            loop.held_for(THROUGH, moment.step)
        if seen.watched and moment.step + 1 >= loop.spec.window:
            self._window_ends(loop, moment, seen)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self._seams.renew(loop)
        if not self._seams.attached:
            loop.rest(self, "after_step")

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
        named = {held[i].name: held[i].parameter for i in silent}
        for name, p in named.items():
            if id(p) in seen.reached:
                seen.at_times.add(alike(name))
            if id(p) not in seen.since:
                seen.since[id(p)] = moment.step
                if p.grad is None:
                    seen.versions[id(p)] = p._version
        if moment.whole:
            now = {id(p) for p in named.values()}
            seen.at_times.update(alike(loop.names[key]) for key in seen.since if key not in now and key in loop.names)
            seen.since = {key: step for key, step in seen.since.items() if key in now}
        self._all_zero(loop, moment, seen, silent)
        if seen.probes >= MOST_PROBES and not loop.dense(moment.step):
            return
        if loop.captured is None:
            loop.capture_next = True
        elif several_processes():
            loop.not_checked(THROUGH, "with several processes a forward is not run again by one of them")
        else:
            seen.probes += not loop.dense(moment.step)
            lasting = moment.step == DENSE - 1 and len(loop.optimizers) == 1
            first = {n: p for n, p in named.items() if seen.since[id(p)] == 0}
            try:
                with loop.captured.undisturbed():
                    probe = Probe(loop.captured)
                    verdict = judged(probe, named, lasting=lasting and len(first) == len(named)) if probe.able else None
                    if verdict is not None and probe.steady:
                        self._say(loop, seen, verdict)
                        return
            except NotRun as why:
                loop.not_checked(THROUGH, str(why))
        self._between(loop, moment, seen, named)

    def _say(self, loop: Loop, seen: Seen, verdict: Verdict) -> None:
        if is_copy({**verdict.cut, **verdict.lost}, loop.parameters):
            seen.follows.update(id(p) for p in (*verdict.cut.values(), *verdict.lost.values()))
        cut = {n: p for n, p in verdict.cut.items() if not self._follows(seen, p)}
        lost = {n: p for n, p in verdict.lost.items() if not self._follows(seen, p)}
        seen.without.update({id(p): "its module runs under no_grad" for p in verdict.without.values()})
        if cut:
            self._say_cut(loop, seen, cut, "something between cuts it (detach, no_grad, .data, a new tensor)",
                          "moved a little, the outputs follow, and no path of autograd leads to it")  # fmt: skip
        if lost:
            self._say_lost(loop, seen, lost, verdict.by)
        if verdict.asleep:
            self._say_zero(
                loop, seen, verdict.asleep, Severity.FAIL,
                "all of them are zero, and as long as they are each holds the gradient of the others at zero",
            )  # fmt: skip
        if verdict.closed:
            self._say_zero(
                loop, seen, verdict.closed, Severity.WARN,
                "what is behind is closed to all inputs (a dead ReLU, saturation, a factor of zero)",
            )  # fmt: skip

    def _between(self, loop: Loop, moment: Moment, seen: Seen, silent: dict[str, Tensor]) -> None:
        """Without a forward of the whole model: where one submodule's output goes into another without its graph."""
        trained = {id(moment.held[i].parameter) for i, norm in moment.norms.items() if norm != 0}
        if not trained:
            return
        for seam in self._seams.found():
            cut = {name: p for name, p in silent.items() if id(p) in seam.before}
            every = len(cut) == len([h for h in moment.held if id(h.parameter) in seam.before])
            if not cut or not every or not trained & seam.after or is_copy(cut, loop.parameters):
                continue
            if seam.meant:
                seen.without.update({id(p): f"the output of {seam.giver} goes into {seam.taker} {seam.how}"
                                     for p in cut.values()})  # fmt: skip
            else:
                self._say_cut(loop, seen, cut, f"the output of {seam.giver} goes into {seam.taker} {seam.how}",
                              f"the input of {seam.taker} has the numbers of that output, but not its graph")  # fmt: skip
        lost, by = self._seams.rounded(silent, trained)
        if lost:
            self._say_lost(loop, seen, lost, by)

    def _switched_off(self, loop: Loop, moment: Moment, seen: Seen) -> None:
        """Parameters that were trained and no longer ask for a gradient; and what was not declared among the frozen."""
        spec, held = loop.spec, moment.held
        off = [
            held[i] for i in moment.missing
            if not held[i].parameter.requires_grad and held[i].name and id(held[i].parameter) not in seen.settled
        ]  # fmt: skip
        stopped = {
            h.name: h.parameter for h in off if id(h.parameter) in seen.reached and not covered(h.name, spec.frozen)
        }
        if any(a.backwards and not a.cleared for a in loop.anchors.get(moment.index, ())):
            stopped = {}  # the loop keeps gradients, as zeros: those of a part were set to None by hand, and so it is meant
        other = {h.name: h.parameter for h in off if moment.step == 0 and not covered(h.name, spec.frozen)}
        names = list(loop.parameters)
        for those, message in (
            (
                stopped,
                "was trained up to now, and from this step on has requires_grad = False",
            ),
            (other if spec.frozen else {}, "has requires_grad = False, and is not among Spec.frozen"),
        ):
            if those:
                self._judge(loop, moment.step, those, f"{spoken(those, names)} {message}", Severity.WARN,
                            "the optimizer holds it; requires_grad is False")  # fmt: skip
        seen.settled.update(id(h.parameter) for h in off)

    def _say_cut(self, loop: Loop, seen: Seen, cut: dict[str, Tensor], why: str, evidence: str) -> None:
        names = list(loop.parameters)
        it = "them" if len(groups(cut, names)) > 1 else "it"
        message = f"the outputs depend on {spoken(cut, names)}, but backward gives {it} no gradient: {why}"
        self._judge(loop, self._first(seen, cut), cut, message, Severity.FAIL, evidence)
        seen.settled.update(id(p) for p in cut.values())

    def _say_zero(self, loop: Loop, seen: Seen, those: dict[str, Tensor], severity: Severity, why: str) -> None:
        message = f"the gradient of {spoken(those, list(loop.parameters))} is exactly zero: {why}"
        self._judge(
            loop, self._first(seen, those), those, message, severity, f"in {DENSE} steps in a row, from the first"
        )
        seen.settled.update(id(p) for p in those.values())

    def _say_lost(self, loop: Loop, seen: Seen, lost: dict[str, Tensor], by: str) -> None:
        names = list(loop.parameters)
        how = f"every path to it goes through {by}, whose gradient is zero" if by else (
            "the outputs change in jumps only: a comparison, argmax or cast to integers is between"
        )  # fmt: skip
        loop.judge(
            THROUGH, self._first(seen, lost), THROUGH.margin(len(lost), 0),
            lambda: {
                "message": f"{spoken(lost, names)} gets no gradient: {how}; a straight-through gradient is missing",
                "where": next(iter(groups(lost, names))),
                "evidence": f"no gradient but zero comes back to {some(lost)}, on which the outputs depend",
            },
        )  # fmt: skip
        seen.settled.update(id(p) for p in lost.values())

    def _follows(self, seen: Seen, p: Tensor) -> bool:
        """Whether it began as a copy of others, or somebody moves it though it has no gradient: a teacher, a target."""
        return id(p) in seen.follows or seen.versions.get(id(p), p._version) != p._version

    def _first(self, seen: Seen, those: dict[str, Tensor]) -> int:
        return min(seen.since[id(p)] for p in those.values())

    def _all_zero(self, loop: Loop, moment: Moment, seen: Seen, silent: list[int]) -> None:
        """Every gradient is there, and every one is zero, from the first step on."""
        zero = bool(moment.norms) and moment.whole and not any(moment.norms.values()) and not seen.reached
        seen.zeros = seen.zeros + 1 if zero else 0
        if seen.zeros == ALL_ZERO:
            those = {moment.held[i].name: moment.held[i].parameter for i in silent}
            self._judge(
                loop, moment.step - ALL_ZERO + 1, those,
                f"every gradient is exactly zero, {ALL_ZERO} steps in a row: the loss does not depend on the model",
                Severity.FAIL, f"{len(silent)} gradients, all of zeros",
            )  # fmt: skip
            seen.settled.update(id(p) for p in those.values())

    def _window_ends(self, loop: Loop, moment: Moment, seen: Seen) -> None:
        """What never got a gradient within the window, said once."""
        seen.watched = False
        unused = {
            h.name: h.parameter for h in moment.held
            if id(h.parameter) not in seen.reached and id(h.parameter) not in seen.settled
            and self._expected(loop, h) and is_silent(h.parameter)
            and seen.versions.get(id(h.parameter), h.parameter._version) == h.parameter._version
        }  # fmt: skip
        connected = [n for n, p in unused.items() if p.grad is not None]
        whole = groups(connected, list(loop.parameters))
        free = {n for n in connected if n in whole and unused[n].dim() < 2}  # a shift that the loss does not feel
        unused = {n: p for n, p in unused.items() if n not in free and alike(n) not in seen.at_times}
        if not unused or not seen.reached:
            return
        steps = moment.step + 1
        causes = list(dict.fromkeys(seen.without[id(p)] for p in unused.values() if id(p) in seen.without))
        none = [n for n, p in unused.items() if p.grad is None]
        why = "; ".join(causes) or (
            "not called, or the output unused" if none else "its gradient is zero throughout, though it is connected"
        )  # fmt: skip
        message = f"{spoken(unused, list(loop.parameters))} not used by the loss in {steps} steps: {why}"
        evidence = (
            f"{len(unused)} parameters that the optimizer holds: {len(none)} without a gradient, the rest all zero"
        )
        self._judge(loop, moment.step, unused, message, Severity.WARN, evidence)
        seen.settled.update(id(p) for p in unused.values())

    def _judge(
        self, loop: Loop, step: int, those: dict[str, Tensor], message: str, severity: Severity, evidence: str
    ) -> None:
        loop.judge(
            REACH, step, REACH.margin(len(those), 0),
            lambda: {"message": message, "where": next(iter(groups(those, list(loop.parameters))), ""),
                     "evidence": evidence, "severity": severity},
        )  # fmt: skip
