"""RUN-16: weights that are drawn anew in the middle of a run, and weights that an evaluation put in place of those that train."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import LATER, TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run16_parameter_moves import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain, some

MOST, SAMPLE, LEAST_NUMBERS = 4, 256, 64
NEAR = 8
"""Steps that a sample may be old."""
OTHER = 0.3
"""The cosine of what a matrix is to what it was, from which on it is another one."""
SIZES = (0.2, 5.0)
"""The size of what it is over that of what it was, between which it is drawn anew, and has not run away."""
LEAST = 2
EVALUATIONS = 2
"""After which the weights that were evaluated are still there."""


class Overwritten(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, list[tuple[str, Tensor, Tensor]]]] = {}
        self._small: Tensor | None = None
        self._versions: list[tuple[int, int]] = []
        """Steps, and how often the small parameter was written to after each."""
        self._evaluated: int | None = None
        """The version that was evaluated, where it was written to before."""
        self._stays = 0

    def start(self, loop: Loop) -> None:
        held = [h.parameter for h in loop.held[0] if h.name and h.parameter.requires_grad and plain(h.parameter)]
        fit = [p for p in held if p.numel() > 4 and not nn.parameter.is_lazy(p)]
        if fit and len(loop.optimizers) == 1:
            self._small = min(fit, key=Tensor.numel)

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if module.training or torch.is_grad_enabled() or self._small is None or self._evaluated is not None:
            return
        expected = self._expected(loop.step)
        if expected is not None and self._small._version > expected and loop.loaded < loop.step - 1:
            self._evaluated = self._small._version
            loop.stir(turn=True)

    def _expected(self, step: int) -> int | None:
        """The version after all steps so far, by those that were looked at; None where they do not tell."""
        if len(self._versions) < 3:
            return None
        (a, b), (c, d), (e, f) = self._versions[-3:]
        each = (d - b) // (c - a)
        if each < 1 or (d - b) != each * (c - a) or (f - d) != each * (e - c):
            return None
        return f + each * (step - 1 - e)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        evaluated, self._evaluated = self._evaluated, None
        small = self._small
        if evaluated is not None and small is not None:
            meant = small._version != evaluated or loop.restored >= moment.step - 1 or not copied(small)
            self._stays += 1
            self._versions = []
            if not meant and self._stays == EVALUATIONS:
                self._say_kept(loop, moment.step)
            if meant or self._stays == EVALUATIONS:
                self._small = None
        self._compare(loop, moment)

    def _compare(self, loop: Loop, moment: Moment) -> None:
        step, samples = self._kept.get(moment.index, (-NEAR - 1, []))
        if moment.step - step > NEAR or loop.loaded > step or not samples or loop.tallies[RULE.id].violations:
            return
        if not other(samples[0][2], sampled(samples[0][1])) and not other(samples[-1][2], sampled(samples[-1][1])):
            return
        anew = [name for name, parameter, old in samples if other(old, sampled(parameter))]
        if len(anew) >= LEAST and 2 * len(anew) > len(samples):
            loop.judge(
                RULE, moment.step, RULE.margin(2.0, 1.0),
                partial(
                    dict, message=f"{some(anew)} have nothing to do with what they were after step {step}: something drew the "
                    "weights anew in the middle of the run", where="drawn anew", severity=Severity.WARN,
                    evidence=f"{len(anew)} of {len(samples)} matrices are of the size that they had, in other directions",
                ),
            )  # fmt: skip
            self._kept.pop(moment.index)

    def _say_kept(self, loop: Loop, step: int) -> None:
        if loop.tallies[RULE.id].violations:
            return
        loop.judge(
            RULE, step, RULE.margin(2.0, 1.0),
            partial(
                dict, message="for an evaluation the weights were replaced by those of a copy, and what was trained was not put "
                "back: training goes on from the copy, after each evaluation", where="not put back", severity=Severity.WARN,
                evidence="written to before the evaluation and not after it; another tensor has the same numbers",
            ),
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self._compare(loop, moment)  # they may have been written to before a step that was not looked at
        if moment.index == 0 and self._small is not None:
            self._versions = [*self._versions[-2:], (moment.step, self._small._version)]
        if moment.step >= LATER:  # the next turn is further away than a sample may be old
            self._kept.pop(moment.index, None)
            return
        fit = [
            h for h in moment.held
            if h.name and h.parameter.ndim > 1 and h.parameter.numel() >= LEAST_NUMBERS and plain(h.parameter)
            and h.parameter.is_floating_point()
        ]  # fmt: skip
        chosen = fit[:: max(1, -(-len(fit) // MOST))]
        self._kept[moment.index] = moment.step, [(h.name, h.parameter, sampled(h.parameter)) for h in chosen]

    def drop(self) -> None:
        self._kept, self._small, self._versions = {}, None, []


def sampled(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].clone()


def other(old: Tensor, new: Tensor) -> bool:
    """Whether numbers are drawn anew: as large as those before, in another direction."""
    if old.shape != new.shape:
        return False
    a, b = old.float(), new.float()
    aa, ab, bb = (
        torch.stack([a * a, a * b, b * b]).sum(1).tolist()
    )  # no product that a counter of operations would count
    if not aa > 0 or not SIZES[0] ** 2 < bb / aa < SIZES[1] ** 2:
        return False
    return bool(ab < OTHER * (aa * bb) ** 0.5)


def copied(parameter: Tensor) -> bool:
    """Whether another tensor without a graph, that is none of autograd's, has the very same numbers."""
    own = parameter.detach()
    if len(torch.unique(own)) < 4:
        return False
    for thing in gc.get_objects():
        if type(thing) is not Tensor or thing.shape != own.shape or thing.requires_grad or thing.dtype is not own.dtype:
            continue
        if thing.device != own.device or thing.layout is not own.layout or thing.data_ptr() == own.data_ptr():
            continue
        if torch.equal(thing, own):
            return True
    return False
