"""RUN-8: numbers that are drawn from what a part of the model gives, through which no gradient comes back: sample() in place of
rsample(). That part still gets one from another output, as an encoder does from its divergence.

The outputs are told apart by running the forward again from other seeds: some are drawn, some are not. Where a drawn one follows
parameters that its graph does not reach, and the others' do, its gradient was lost in the drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.trees import Path, leaves
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import walk
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.probing import FEWER, SLIGHT, moved
from karat.invariants.runtime.watching.silence import several_processes

MOST_OUTPUTS = 8


class Drawn(Check):
    rules = (RULE,)
    interval = "first step"
    of_forward = True

    def __init__(self) -> None:
        self._reached: dict[Path, frozenset[int]] = {}

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._reached or loop.step != loop.first or not torch.is_grad_enabled() or not module.training:
            return
        made = [(path, t) for path, t in leaves(output) if t.grad_fn is not None and t.is_floating_point()]
        if not 2 <= len(made) <= MOST_OUTPUTS:
            return
        walks = {path: walk([t]) for path, t in made}
        if all(w.certain for w in walks.values()) and len({frozenset(w.leaves) for w in walks.values()}) > 1:
            self._reached = {path: frozenset(w.leaves) for path, w in walks.items()}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        reached, self._reached = self._reached, {}
        loop.off(self)
        captured = loop.captured
        if not reached or captured is None or not captured.training or several_processes():
            return
        trainable = {name: p for name, p in loop.trainable().items() if not covered(name, loop.spec.detached)}
        try:
            with captured.undisturbed():
                cut = lost(captured, reached, trainable)
        except NotRun:
            return
        if cut:
            names = list(loop.parameters)
            loop.judge(
                RULE, moment.step, RULE.margin(len(cut), 0),
                partial(
                    dict, message=f"an output is made of numbers that are drawn by what {spoken(cut, names)} gives, and no "
                    "gradient of it comes back through the drawing: sample() where rsample() is meant",
                    where=next(iter(groups(cut, names)), ""), severity=Severity.WARN,
                    evidence="moved a little, with the same seed, the output follows; only other outputs reach it by autograd",
                ),
            )  # fmt: skip

    def drop(self) -> None:
        self._reached = {}


def lost(captured: Captured, reached: dict[Path, frozenset[int]], trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that an output follows through what is drawn, and does not reach; to be used inside `undisturbed`."""
    first, again, other = (_run(captured, seed) for seed in (0, 0, 1))
    if not all(path in out and out[path].shape == first[path].shape for path in first for out in (again, other)):
        return {}
    if not all(torch.equal(first[path], again[path]) for path in first):
        return {}
    drawn = [path for path in reached if path in first and not torch.equal(first[path], other[path])]
    still = [path for path in reached if path in first and path not in drawn]
    of_still = frozenset[int]().union(*(reached[path] for path in still))
    for path in drawn:
        cut = {name: p for name, p in trainable.items() if id(p) in of_still and id(p) not in reached[path]}
        if cut and _follows(captured, path, first[path], list(cut.values())):
            return cut
    return {}


def _run(captured: Captured, seed: int) -> dict[Path, Tensor]:
    captured.rewind()
    return captured.again(training=False, seed=seed)


def _follows(captured: Captured, path: Path, before: Tensor, cut: list[Tensor]) -> bool:
    """Whether an output follows parameters, and a smaller move by as much less: what is drawn from classes jumps."""
    sizes = []
    for scale in (SLIGHT, SLIGHT / FEWER):
        with moved(cut, scale):
            after = _run(captured, 0).get(path)
        if after is None or after.shape != before.shape:
            return False
        sizes.append(float((after.double() - before.double()).norm()))
    wide, narrow = sizes
    return 0 < 0.5 * FEWER * narrow < wide < 2 * FEWER * narrow
