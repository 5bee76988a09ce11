"""RUN-13 where no norm is declared: a part of the model, or the gradients at their scale, have one and the same norm in
step after step, and all together do not. Only clipping makes that; see clipping.py for a declared norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from karat.invariants.run.rule import Severity
from karat.invariants.run.run13_clipping import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.naming import plain

EXACT = 1e-4
"""Relative difference of norms that are one number."""
SCALED, TINY = 1024.0, 1e-2
"""Loss scales below this, and norms above this, are not judged."""


class Clipped(Check):
    rules = (RULE,)
    interval = "first steps"

    def __init__(self) -> None:
        self._norms: dict[int, list[dict[str, float]]] = {}
        self._scale: dict[int, float] = {}
        self._scales: dict[int, list[float]] = {}

    def start(self, loop: Loop) -> None:
        if loop.spec.clip_norm is not None:
            loop.off(self)

    def look(self, loop: Loop, moment: Moment) -> None:
        for scaler in loop.attached.scalers[:1]:
            if isinstance(scale := scaler._scale, torch.Tensor):
                loop.transfer.ask([scale], lambda numbers: self._scale.__setitem__(moment.index, numbers[0]))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        step = moment.step - loop.first
        if step >= DENSE:
            loop.off(self)
            return
        scale = self._scale.pop(moment.index, 1.0)
        if not moment.whole or moment.closure or moment.scaled or not 0 < moment.norm < math.inf:
            return
        held = moment.held
        norms = {held[k].name or f"outside the model.{k}": norm for k, norm in moment.norms.items()}
        self._norms.setdefault(moment.index, []).append(norms)
        self._scales.setdefault(moment.index, []).append(scale)
        if step == DENSE - 1 and len(self._norms[moment.index]) == DENSE:
            self._judge(loop, moment, self._norms[moment.index], self._scales[moment.index])

    def _judge(self, loop: Loop, moment: Moment, seen: list[dict[str, float]], scales: list[float]) -> None:
        whole = [_norm(norms.values()) for norms in seen]
        scaled = [norm * scale for norm, scale in zip(whole, scales, strict=True)]
        if min(scales) >= SCALED and max(whole) < TINY and _one(scaled):
            loop.found(
                RULE, f"the gradients were clipped to {scaled[0]:.4g} before they were unscaled: their norm is {whole[0]:.4g} "
                f"in each step, 1/{scales[0]:g} of that",
                step=moment.step, margin=-1.0, where="scaled", severity=Severity.WARN,
                evidence="scaler.unscale_(optimizer) is to come before clip_grad_norm_",
            )  # fmt: skip
            return
        if _one(whole):
            return
        for part in dict.fromkeys(".".join(name.split(".")[:depth]) for depth in (1, 2) for name in seen[0]):
            inside = [_norm(n for name, n in norms.items() if _in(name, part)) for norms in seen]
            if not (_one(inside) and _round(inside[0])):
                continue  # by far the most: what follows goes through all parts again
            rest = [{name: n for name, n in norms.items() if not _in(name, part)} for norms in seen]
            others = [_norm(norms.values()) for norms in rest]
            alone = min(others) > inside[0] and not _some_one(rest)
            if alone and not _cut(moment, part):
                loop.found(
                    RULE, f"only {part} is clipped: its gradients have norm {inside[0]:.4g} in each step, the rest of what the "
                    f"optimizer holds has {others[0]:.4g}, {others[1]:.4g}, {others[2]:.4g}",
                    step=moment.step, margin=-1.0, where=part, severity=Severity.WARN,
                    evidence=f"steps {moment.step - DENSE + 1} to {moment.step}; {len(rest[0])} parameters in the rest",
                )  # fmt: skip
                return

    def drop(self) -> None:
        self._norms, self._scales = {}, {}


def _in(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _cut(moment: Moment, part: str) -> bool:
    """Whether the gradients of a part were cut at a value, number by number: all of its numbers are as large, or its largest
    are those of the rest, too."""
    largest: dict[bool, set[float]] = {True: set(), False: set()}
    level = True
    for k, gradient in moment.grads.items():
        if plain(gradient):
            inside, most = _in(moment.held[k].name, part), float(gradient.abs().max())
            largest[inside].add(most)
            level = level and (not inside or float(gradient.abs().min()) == most)
    return (level and len(largest[True]) == 1) or bool(largest[True] & largest[False])


def _norm(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))


def _one(norms: list[float]) -> bool:
    """Whether norms of several steps are one number, and not zero."""
    return min(norms) > 0 and max(norms) - min(norms) <= EXACT * max(norms)


def _round(norm: float) -> bool:
    """Whether a norm is a number that people write: of two digits."""
    return abs(float(f"{norm:.1e}") - norm) <= EXACT * norm


def _some_one(seen: list[Mapping[str, float]] | list[dict[str, float]]) -> bool:
    """Whether another part has one norm in all steps, too: then each is clipped by itself, as some mean it."""
    parts = dict.fromkeys(".".join(name.split(".")[:depth]) for depth in (1, 2) for name in seen[0])
    return any(_one([_norm(n for name, n in norms.items() if _in(name, part)) for norms in seen]) for part in parts)
