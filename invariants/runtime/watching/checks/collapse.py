"""RUN-36: different inputs give different outputs: in the forwards that are kept, and by an entropy that the loop logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from karat.invariants.run.cadence import LIGHT, LOOKS
from karat.invariants.run.run36_collapse import RULE as COLLAPSE
from karat.invariants.runtime.preflight.trees import Path
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.outputs import certain, differ, directions, of_softmax, spread_of, turned

EARLY = 3
"""Looks at the start, against which later ones are compared."""
SHRUNK = 0.06
ONE_WAY, TURNED = 0.1, 0.15
"""Spread of directions, and that over the one at the first look, below which outputs all point one way."""
NARROW, NARROWED, NARROW_LOOKS = 0.35, 0.4, 2
"""The same of a model that is its own target, as several outputs or forwards of a step are; and looks in a row."""
MOST_OUTPUTS = 4
LASTS = 12
"""Steps that one output for all must last where all parameters get a gradient."""
LEFT = 0.1
"""Of a logged entropy, over its mean of the first ten."""
FIRST_ENTROPIES = 10


class Collapse(Check):
    rules = (COLLAPSE,)
    interval = LOOKS
    of_forward = True

    def __init__(self) -> None:
        self._entropies: dict[str, list[float]] = {}
        self._spreads: dict[str, list[float]] = {}
        self._turned: dict[tuple[str, Path], float] = {}
        self._narrow: dict[str, int] = {}
        """Looks in a row at which all outputs of a root were narrow."""
        self._equal: dict[str, int] = {}
        """The step since which a root's outputs are equal."""

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        path = captured.main if captured is not None else None
        if captured is None or path is None or not captured.gradients:
            return
        x = captured.outputs[path]
        if x.ndim < 1 or x.shape[0] < 4 or not differ(captured, x.shape[0]):
            return
        seen = spread_of(x, captured.most)
        if not math.isfinite(seen.size):
            return
        before = self._spreads.setdefault(captured.root, [])
        if not seen.equal:
            self._equal.pop(captured.root, None)
        shrunk = len(before) == EARLY and seen.typical < min(SHRUNK * min(before), 0.05 * seen.size)
        if len(before) < EARLY and not seen.equal:
            before.append(seen.typical)
        one_way = self._one_way(captured, loop.forwards - loop.applied)
        message, evidence = "", f"spread over the samples {seen.typical:.3g}, largest output {seen.size:.3g}"
        if seen.equal and self._passing(moment, captured.root):
            return
        if seen.equal and (before or moment.step >= LIGHT):  # before that, a head of zeros that has not moved yet
            message = f"the outputs are the same for all {x.shape[0]} samples of a batch that differ"
        elif shrunk:
            message = f"the outputs differ by {seen.typical:.2g} between samples, {min(before):.2g} at the start: they collapse"
        elif one_way is not None:
            message = f"the outputs of all samples point one way: their directions differ by {one_way[0]:.2g}, "
            message += f"{one_way[1]:.2g} at the start, and the loss is of directions alone: they collapse"
        elif (name := certain(captured, path)) is not None:
            message = f"the model is certain of class {name} for all {x.shape[0]} samples, whatever they are"
        if not seen.equal or message:
            loop.judge(
                COLLAPSE, moment.step, COLLAPSE.margin(float(bool(message)), 0.0),
                lambda: {"message": message, "where": captured.root, "evidence": evidence},
            )  # fmt: skip

    def _passing(self, moment: Moment, root: str) -> bool:
        """Whether one output for all may pass: every parameter gets a gradient, as where samples share a code at first."""
        first = self._equal.setdefault(root, moment.step)
        alive = bool(moment.grads) and all(bool(g.any()) for g in moment.grads.values() if not g.is_sparse)
        return alive and moment.step - first < LASTS

    def _one_way(self, captured: Captured, forwards: int) -> tuple[float, float] | None:
        """The spread of the directions of an output, now and at first, where a loss of directions alone ends it."""
        most = 2 * captured.most
        several = [p for p in captured.gradients if p in captured.outputs and captured.outputs[p].ndim > 1][
            :MOST_OUTPUTS
        ]
        alone = {
            path: None if of_softmax(captured, path) else turned(captured.outputs[path], captured.gradients[path], most)
            for path in several
        }
        if all(now is None for now in alone.values()):
            return None
        narrow, found = [], None
        for path, turns in alone.items():
            now = directions(captured.outputs[path], most) if turns is None else turns
            if now is None:
                continue
            first = self._turned.setdefault((captured.root, path), now)
            narrow.append(now < min(NARROW, NARROWED * first))
            if turns is not None and (found is None or now / first < found[0] / found[1]):
                found = now, first
        looks = self._narrow.get(captured.root, 0) + 1 if all(narrow) and max(len(narrow), forwards) > 1 else 0
        self._narrow[captured.root] = looks
        if found is None or (looks < NARROW_LOOKS and found[0] >= min(ONE_WAY, TURNED * found[1])):
            return None
        return found

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """An entropy that the loop logs as a number."""
        for name, value in logged.items():
            if "entropy" not in name or "cross" in name or not isinstance(value, float) or not math.isfinite(value):
                continue
            held = self._entropies.setdefault(name, [])
            if len(held) < FIRST_ENTROPIES:
                held.append(value)
                continue
            start = sum(held) / len(held)
            if start > 0:
                message = f"the logged {name} fell from {start:.3g} to {value:.3g}: the policy is certain of everything"
                loop.judge(
                    COLLAPSE, loop.step, COLLAPSE.margin(float(0 <= value < LEFT * start), 0.0),
                    lambda message=message, name=name: {"message": message, "where": name},  # type: ignore[misc]
                )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        if not loop.tallies[COLLAPSE.id].checks:
            loop.not_checked(COLLAPSE, "no outputs of four samples or more, of inputs that differ, were seen")
