"""RUN-11: what a step applies was computed since the last step, from nothing, and once.

A few small parameters of each optimizer, the anchors, carry two hooks of autograd: the one before a gradient is added sees
whether the old one was cleared, the one after it counts. So nothing has to be guessed from the numbers, and accumulation,
closures, and other optimizers' backward passes do not disturb it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch

from karat.invariants.run.cadence import SETTLED
from karat.invariants.run.rule import Severity
from karat.invariants.run.run11_gradient_fresh import RULE
from karat.invariants.runtime.watching.anchors import Anchor, before_added, called, fit, split
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import spoken
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Held, Loop
from karat.invariants.runtime.watching.naming import compiled
from karat.invariants.runtime.watching.reduction import SMALL
from karat.invariants.runtime.watching.unsaved import after_forward

MOST_ANCHORS = 4
"""For each optimizer: two of the model, of parameters outside it, of the last group."""
SAME = 1e-5
"""Relative difference of two norms up to which a gradient counts as the same one, clipped again."""
EMPTY, SKIPPED = 2, 4
"""Steps in a row without any gradient, until that is said: from the start, and where there were some before."""
AGAIN_OR_NEW = "no backward since the last step, and a gradient of the same norm was written by hand or clipped again"
BEFORE = "gradients from before the first step are left: what it applies is their sum with the new ones"


class Freshness(Check):
    rules = (RULE,)
    heard, heard_rules = True, (RULE,)

    def __init__(self) -> None:
        self._anchors: dict[int, list[Anchor]] = {}
        self._answers: dict[int, list[float]] = {}
        self._empty: dict[int, int] = {}
        self._empty_at: dict[int, int] = {}
        self._applied: set[int] = set()
        """Optimizers that have applied some gradient."""
        self._read = 0
        self._settled = False
        self._counting: list[Any] = []
        self._norms: dict[int, tuple[int, dict[int, float]]] = {}

    def start(self, loop: Loop) -> None:
        self._safe = partial(harmless, loop, self)
        loop.anchors = self._anchors
        self._read = loop.renamed
        for place, held in enumerate(loop.held):
            self._choose(place, held, range(len(held)))
            self._follow(loop, place)
        self._count(loop)

    def look(self, loop: Loop, moment: Moment) -> None:
        if self._read != loop.renamed:
            self._chosen_anew(loop)
        anchors = self._anchors.get(moment.index, ())
        if any(anchor.left or anchor.repeats or anchor.brought for anchor in anchors):
            asked = [t for anchor in anchors for t in (*anchor.left, *anchor.repeats, *anchor.brought)]
            loop.transfer.ask(asked, partial(self._answers.__setitem__, moment.index))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        numbers = self._answers.pop(moment.index, [])
        anchors = self._anchors.get(moment.index, [])
        if moment.closure:
            return
        self._left_on_frozen(loop, moment)
        if not anchors:
            return
        if all(a.backwards == 1 and a.cleared and a.parameter.grad is not None for a in anchors) and (
            any(moment.norms.values())
        ):  # fmt: skip
            self._empty[moment.index] = 0
            self._applied.add(moment.index)
            loop.held_for(RULE, moment.step)
            return
        found, judged, brought = "", 0, 0.0
        evidence = ""
        for anchor in anchors:
            sizes = len(anchor.left), len(anchor.repeats), len(anchor.brought)
            left, repeats, came, numbers = split(numbers, sizes)
            brought = max([brought, *came])
            if anchor.parameter.grad is None:
                continue
            judged += 1
            message = self._judged(moment, anchor, left, repeats)
            if message and not _holds(moment.optimizer, anchor):  # it was exchanged since the holdings were read
                loop.stir(turn=True)
                return
            if message and not found:
                times = "1 backward pass" if anchor.backwards == 1 else f"{anchor.backwards} backward passes"
                found, evidence = message, f"seen on {anchor.name}: {times}"
                evidence += f", the first onto a gradient of norm {left[0]:.3g}" if left else ""
        if not judged or (moment.whole and not any(moment.norms.values())):
            self._none(loop, moment, anchors, brought)
            return
        self._empty[moment.index] = 0
        self._applied.add(moment.index)
        loop.judge(
            RULE, moment.step, RULE.margin(float(bool(found)), 0.0),
            lambda: {"message": found, "where": "", "evidence": evidence,
                     "severity": Severity.WARN if found in (BEFORE, AGAIN_OR_NEW) else Severity.FAIL},
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        anchors = self._anchors.get(moment.index, [])
        blind = False
        if self._counting and loop.forwards:
            self._stop_counting()
        if not moment.between:
            self._norms[moment.index] = (moment.step, moment.norms)
        for anchor in anchors:
            grad = anchor.parameter.grad
            blind |= grad is None
            norm = moment.norms.get(anchor.place)
            anchor.applied = None if grad is None or norm is None else (id(grad), norm, grad._version)
            anchor.renew()
        if moment.step >= SETTLED and not self._settled:
            self._settled = blind = True  # chosen anew: fewer
        if (blind or not anchors) and moment.grads:
            self._forget(moment.index)
            self._choose(moment.index, moment.held, moment.grads)
            self._follow(loop, moment.index)
            for anchor in self._anchors.get(moment.index, []):
                anchor.renew()

    def finish(self, loop: Loop) -> None:
        if not loop.tallies[RULE.id].checks:
            loop.not_checked(RULE, "no parameter with a gradient that hooks of autograd see: shards, or no step at all")

    def drop(self) -> None:
        for place in list(self._anchors):
            self._forget(place)
        self._stop_counting()
        self._answers, self._norms = {}, {}

    def _judged(self, moment: Moment, anchor: Anchor, left: list[float], repeats: list[float]) -> str:
        """What is wrong with the gradient of an anchor; empty where nothing is."""
        if not anchor.backwards:
            return self._again(moment, anchor)
        if not anchor.cleared and not any(norm == 0 for norm in left):
            if anchor.first:
                return BEFORE
            return f"the gradients were not cleared since step {moment.step - 1}: zero_grad() is missing"
        if any(norm == 0 for norm in repeats) and any(norm != 0 for norm in left) and (
            0 < (moment.forwards or anchor.calls) < anchor.backwards
        ):  # fmt: skip
            forwards = moment.forwards or anchor.calls
            return f"the same gradient was added twice: {anchor.backwards} backward passes to {forwards} forward"
        return ""

    def _again(self, moment: Moment, anchor: Anchor) -> str:
        """No backward wrote to it: either it was put there by hand, or it is the one that was applied before."""
        if anchor.applied is None or anchor.applied[0] != id(anchor.parameter.grad):
            return ""
        now, before = moment.norms.get(anchor.place), anchor.applied[1]
        if now is None or abs(now - before) > SAME * before or not before:
            return ""
        if anchor.parameter.grad is not None and anchor.parameter.grad._version != anchor.applied[2]:
            return AGAIN_OR_NEW
        return "no backward since the last step: the same gradient is applied again"

    def _none(self, loop: Loop, moment: Moment, anchors: list[Anchor], brought: float) -> None:
        """No parameter of the optimizer has a gradient, or all are zero, though a backward or a forward was run."""
        backwards = max(anchor.backwards for anchor in anchors)
        alone = len(loop.optimizers) == 1
        if moment.grads:  # zeros: cleared only if what came was not zero
            for anchor in anchors:
                anchor.measured = True
            empty = backwards > 0 and (brought > 0 or self._empty.get(moment.index, 0) == 0)
        else:
            empty = backwards > 0 or (alone and (moment.forwards > 0 or moment.index in self._applied))
        empty = empty and any(h.parameter.requires_grad and h.name for h in moment.held)
        in_a_row = self._empty_at.get(moment.index) == moment.step - 1
        self._empty[moment.index] = (self._empty.get(moment.index, 0) if in_a_row else 0) + 1 if empty else 0
        self._empty_at[moment.index] = moment.step
        limit = EMPTY if alone and moment.index not in self._applied else SKIPPED
        if self._empty[moment.index] != limit:
            return
        called = backwards or moment.forwards
        message = (
            "the gradients were cleared between backward and step: the step applies nothing"
            if backwards else
            "the model of this optimizer is called no more, and its parameters get no gradient: the steps apply nothing (another "
            "model was built, and the optimizer holds the old one)"
            if not called else "no backward since the last step: no parameter has a gradient, and nothing is trained"
        )  # fmt: skip
        loop.judge(
            RULE, moment.step - limit + 1, RULE.margin(1.0, 0.0),
            lambda: {"message": message, "where": "", "severity": RULE.severity if called else Severity.WARN,
                     "evidence": f"{backwards} backward passes since the last step, "
                     f"{len(moment.grads)} gradients that are not None, {limit} steps in a row"},
        )  # fmt: skip

    def _left_on_frozen(self, loop: Loop, moment: Moment) -> None:
        """A parameter that no longer asks for a gradient has the very one that the last step applied."""
        held = moment.held
        if all(held[i].parameter.requires_grad for i in moment.norms):
            return
        step, before = self._norms.get(moment.index, (-1, {}))
        stale = {
            held[i].name: n for i, n in moment.norms.items()
            if not held[i].parameter.requires_grad and n and abs(n - before.get(i, 0.0)) <= SAME * n
        }  # fmt: skip
        if stale:
            names = list(loop.parameters)
            loop.judge(
                RULE, moment.step, RULE.margin(1.0, 0.0),
                lambda: {
                    "message": f"{spoken(stale, names)} has requires_grad = False and still the gradient of step {step}: "
                    "it was not cleared, and is applied again",
                    "where": next(iter(stale)),
                    "evidence": f"the same norm in both steps: {next(iter(stale.values())):.3g}",
                },
            )  # fmt: skip

    def _count(self, loop: Loop) -> None:
        """Counts the forwards of the modules that have the anchors, until it is seen that the model is called itself."""
        if compiled(loop.model):
            return
        anchors = {id(a.parameter): a for several in self._anchors.values() for a in several}
        for module in loop.model.modules():
            for parameter in module.parameters(recurse=False):
                anchor = anchors.pop(id(parameter), None)
                if anchor is not None:
                    self._counting.append(after_forward(module, self._safe(partial(called, anchor))))

    def _stop_counting(self) -> None:
        for handle in self._counting:
            handle.remove()
        self._counting = []

    def _chosen_anew(self, loop: Loop) -> None:
        """After the holdings changed: anchors that are still held keep their place, the others go."""
        self._read = loop.renamed
        for place, held in enumerate(loop.held):
            places = {id(h.parameter): i for i, h in enumerate(held)}
            if any(id(anchor.parameter) not in places for anchor in self._anchors.get(place, ())):
                self._forget(place)
                self._follow(loop, place)
                continue  # chosen after the step, among those that have a gradient
            for anchor in self._anchors.get(place, ()):
                anchor.place = places[id(anchor.parameter)]
            self._follow(loop, place)

    def _follow(self, loop: Loop, place: int) -> None:
        """Tells the loop which are followed."""
        loop.always[place] = [anchor.place for anchor in self._anchors.get(place, ())]

    def _choose(self, index: int, held: Sequence[Held], places: Iterable[int]) -> None:
        """The first small parameter of the model, of those outside it, and of the last group: what is not finite spreads
        upstream in a backward, so that the first shows it. At the start the smallest of the model too, which few losses
        reach: of several one may be added twice."""
        able = [i for i in places if fit(held[i])]
        last = max((held[i].group for i in able), default=0)
        kinds = (
            [i for i in able if held[i].name],
            [i for i in able if not held[i].name],
            [i for i in able if held[i].group == last and last],
        )
        chosen = {_first_small(held, kind) for kind in kinds if kind}
        if not self._settled and kinds[0]:
            chosen.add(min(kinds[0], key=lambda i: held[i].parameter.numel()))
        anchors = [
            Anchor(held[i].name or "a parameter of the optimizer", held[i].parameter, i, []) for i in sorted(chosen)
        ]
        for anchor in anchors[:MOST_ANCHORS]:
            anchor.handles = [
                anchor.parameter.register_hook(before_added(anchor, self._safe(anchor.arrives))),  # type: ignore[no-untyped-call]
                anchor.parameter.register_post_accumulate_grad_hook(anchor.added),  # type: ignore[no-untyped-call]
            ]
        self._anchors[index] = anchors

    def _forget(self, place: int) -> None:
        for anchor in self._anchors.pop(place, []):
            for handle in anchor.handles:
                handle.remove()


def _first_small(held: Sequence[Held], places: Sequence[int]) -> int:
    """The first parameter that is small, else the smallest."""
    small = next((i for i in places if held[i].parameter.numel() <= SMALL), None)
    return min(places, key=lambda i: held[i].parameter.numel()) if small is None else small


def _holds(optimizer: torch.optim.Optimizer, anchor: Anchor) -> bool:
    return any(p is anchor.parameter for group in optimizer.param_groups for p in group["params"])
