"""RUN-31, 39, 41: data that were in order and are no longer: inputs that turned the same for all samples, batches of one class
alone, targets that have nothing to do any more with what the model says.

What is odd at one look is looked at again in the steps that follow, and said only where it stays so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run31_inputs import RULE as INPUTS
from karat.invariants.run.run39_targets import RULE as TARGETS
from karat.invariants.run.run41_labels import RULE as LABELS
from karat.invariants.runtime.preflight.inputs import argument
from karat.invariants.runtime.preflight.trees import Path, spelled
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.reading import Reading, part, read_binary

ORDERLY = 3
"""Looks at which all was in order, before anything counts as a change."""
LEAST = 8
"""Samples, or labels, of a batch that tells."""
IN_A_ROW = {"inputs": 2, "labels": 3, "targets": 4}
"""Looks in a row at which something is odd, until it is said."""
MOST_ASKED = 16
UNLIKELY = 1e-6
FAR, KEPT = 20.0, 8
"""Times that an input is larger or smaller than at the last looks."""
ENOUGH = 64
"""Targets that are needed to tell chance."""
ABOVE, NEAR = 0.3, 2.5
"""How far the share of right answers was above chance, and how many standard deviations it is now, at most, from it."""
BY_CHANCE = 0.1
"""What guessing must hit: below, as where only wrong answers are trained on, chance and error look alike."""


@dataclass
class Course:
    """One thing from look to look: how often it was in order, and since which step it is odd."""

    orderly: int = 0
    odd: int = 0
    since: int = 0

    def take(self, odd: bool, step: int) -> bool:
        """Whether it is odd now, after it was in order."""
        if self.orderly < ORDERLY:
            self.orderly = 0 if odd else self.orderly + 1
            return False
        self.since = self.since if self.odd and odd else step
        self.odd = self.odd + 1 if odd else 0
        return odd


@dataclass
class Answers:
    """Right answers and those that chance would give, summed over some looks."""

    right: float = 0.0
    chance: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, right: float, chance: float, count: int) -> None:
        self.right, self.chance, self.count = self.right + right, self.chance + chance * count, self.count + count
        self.variance += chance * (1 - chance) * count


@dataclass
class _Root:
    inputs: dict[Path, Course] = field(default_factory=dict)
    labels: Course = field(default_factory=Course)
    labels_seen: Tensor | None = None
    sizes: list[float] = field(default_factory=list)
    """Of the only input of numbers, root mean square at the last looks."""
    other: Course = field(default_factory=Course)
    best: float = 0.0
    answers: Answers = field(default_factory=Answers)
    odd: int = 0
    since: int = 0


class LaterData(Check):
    rules = (INPUTS, TARGETS, LABELS)
    interval = LOOKS
    of_forward = True

    def __init__(self) -> None:
        self._roots: dict[str, _Root] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if captured is None or not captured.gradients:
            return
        root = self._roots.setdefault(captured.root, _Root())
        again = self._inputs(loop, moment.step, captured, root)
        reading = captured.readings.get(captured.main or ())
        if reading is not None and reading.counted >= LEAST:
            targets = reading.targets[reading.counts]
            again |= self._labels(loop, moment.step, targets, reading.classes, root)
            again |= self._answers(loop, moment.step, targets, reading, root)
        elif reading is None and (two := _binary(captured)) is not None and len(two) >= LEAST:
            again |= self._labels(loop, moment.step, two, 2, root)
        if again:
            loop.capture_next = True

    # -- 31 -----------------------------------------------------------------------------------------------------------

    def _inputs(self, loop: Loop, step: int, captured: Captured, root: _Root) -> bool:
        again = False
        for path, t in captured.inputs.items():
            if t.ndim < 2 or len(t) < LEAST or t.dtype is torch.bool or t.is_complex() or t[0].numel() < 2:
                continue
            course = root.inputs.setdefault(path, Course())
            if not course.take(not bool((t != t[:1]).any()), step):
                continue
            again |= course.odd < IN_A_ROW["inputs"]
            value = t.flatten()[0]
            loop.judge(
                INPUTS, course.since, INPUTS.margin(float(course.odd >= IN_A_ROW["inputs"]), 0),
                lambda path=path, t=t, value=value, course=course: {  # type: ignore[misc]
                    "message": f"from step {course.since} on the input {_name(captured, path)} is the same for all {len(t)} "
                    f"samples of a batch{f', {value:g} throughout' if bool((t == value).all()) else ''}: up to then they "
                    "differed",
                    "where": spelled(path[1:]), "evidence": f"{course.odd} batches, one after the other",
                    "severity": Severity.WARN,
                },
            )  # fmt: skip
        return again | self._size(loop, step, captured, root)

    def _size(self, loop: Loop, step: int, captured: Captured, root: _Root) -> bool:
        """Whether the only input of numbers has another size by far than it had at each look up to now, as of what is
        normalised twice, or no longer."""
        given = {p: t for p, t in captured.inputs.items() if t.is_floating_point() and t.ndim > 1 and len(t) >= LEAST}
        if len(given) != 1:
            return False
        path, t = next(iter(given.items()))
        now = float(part(t).detach().double().square().mean().sqrt())
        if not math.isfinite(now) or now == 0:
            return False
        low, high = min(root.sizes, default=now), max(root.sizes, default=now)
        odd = root.other.take(not low / FAR <= now <= high * FAR and high <= FAR * low, step)
        if not odd:
            root.sizes.append(now)
            del root.sizes[:-KEPT]
            return False
        loop.judge(
            INPUTS, root.other.since, INPUTS.margin(float(root.other.odd >= IN_A_ROW["inputs"]), 0),
            lambda: {
                "message": f"from step {root.other.since} on the input {_name(captured, path)} has a root mean square of "
                f"{now:.3g}, and had {low:.3g} to {high:.3g} up to then: it is scaled twice, or not at all",
                "where": f"size of {spelled(path[1:])}", "evidence": f"{root.other.odd} batches, one after the other",
                "severity": Severity.WARN,
            },
        )  # fmt: skip
        return root.other.odd < IN_A_ROW["inputs"]

    # -- 41 -----------------------------------------------------------------------------------------------------------

    def _labels(self, loop: Loop, step: int, targets: Tensor, classes: int, root: _Root) -> bool:
        """Whether batches hold one class alone, of what had several: not of a critic that is given one at a time from the
        start, nor where one class is so frequent that a batch may well hold no other."""
        odd = root.labels.take(bool((targets == targets[0]).all()), step)
        here = targets.bincount(minlength=classes).cpu()
        if not odd:
            root.labels_seen = here if root.labels_seen is None else root.labels_seen + here
        elif root.labels_seen is not None:
            count = root.labels.odd
            frequent = float(root.labels_seen.max() / root.labels_seen.sum())
            certain = count >= IN_A_ROW["labels"] and frequent ** (count * len(targets)) < UNLIKELY
            loop.judge(
                LABELS, root.labels.since, LABELS.margin(float(certain), 0),
                lambda: {
                    "message": f"from step {root.labels.since} on each batch holds one class alone, of {classes}: "
                    "up to then there were several (data that are sorted, and not shuffled)",
                    "where": "batch", "evidence": f"{count} batches, one after the other, of {len(targets)} labels",
                    "severity": Severity.WARN,
                },
            )  # fmt: skip
        return odd and root.labels.odd < IN_A_ROW["labels"]

    # -- 39 -----------------------------------------------------------------------------------------------------------

    def _answers(self, loop: Loop, step: int, targets: Tensor, reading: Reading, root: _Root) -> bool:
        """Whether the model answers by chance what it had learnt to answer: then targets are those of other samples."""
        said = reading.logits.argmax(-1)[reading.counts]
        right = float((said == targets).sum())
        kinds = reading.classes
        told = said.bincount(minlength=kinds).double() / len(said)
        chance = float((told * (targets.bincount(minlength=kinds).double() / len(targets))).sum())
        above = right / len(said) - chance
        if root.best < ABOVE or abs(right - chance * len(said)) > NEAR * _deviation(chance, len(said)):
            root.best = max(root.best, above if len(said) >= LEAST else 0.0)
            root.answers, root.odd = Answers(), 0
            return False
        if chance < BY_CHANCE or float(told.max()) > 0.9 or bool((targets == targets[0]).all()):
            return False
        root.since = root.since if root.odd else step
        root.odd += 1
        a = root.answers
        a.add(right, chance, len(said))
        by_chance = abs(a.right - a.chance) <= NEAR * math.sqrt(a.variance)
        certain = by_chance and root.odd >= IN_A_ROW["targets"] and a.count >= ENOUGH
        loop.judge(
            TARGETS, root.since, TARGETS.margin(float(certain), 0, 0),
            lambda: {
                "message": f"from step {root.since} on the targets have nothing to do with what the model says: "
                f"{a.right / a.count:.0%} of its answers are right, {a.chance / a.count:.0%} would be by chance (targets in "
                "another order than the inputs, or weights that were lost)",
                "where": "order", "evidence": f"{a.count} targets of {root.odd} batches; up to then {root.best:.0%} above "
                "chance", "severity": Severity.WARN,
            },
        )  # fmt: skip
        return not certain and root.odd < MOST_ASKED

    def drop(self) -> None:
        self._roots = {}


def _deviation(chance: float, count: int) -> float:
    return math.sqrt(max(chance * (1 - chance), 1e-9) * count)


def _binary(captured: Captured) -> Tensor | None:
    """The targets of a binary cross-entropy of the main output, 0 or 1, where the loss is one."""
    output, gradient = captured.outputs.get(captured.main or ()), captured.gradients.get(captured.main or ())
    found = read_binary(output, gradient) if output is not None and gradient is not None else None
    return found.targets if found is not None else None


def _name(captured: Captured, path: Path) -> str:
    name = argument(captured.module, path)
    return f"{spelled(path[1:])} ({name})" if name and name not in path else spelled(path[1:])
