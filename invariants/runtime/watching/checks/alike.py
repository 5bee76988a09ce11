"""RUN-30: siblings that began with equal weights, get equal gradients, and so are equal still: judged by parameters and
gradients alone, whoever calls them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import SETTLED
from karat.invariants.run.rule import Severity
from karat.invariants.run.run30_twins import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain_name, some, unwrapped
from karat.invariants.runtime.watching.sampling import fit, spread

FEW = 16
"""Numbers by which siblings are sorted first."""
STEPS = 3
"""Steps with equal gradients after which it is said: two that are to part later may begin alike."""


@dataclass(frozen=True)
class Member:
    """One of several siblings: its trainable parameters, and the first that is a matrix."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    weight: nn.Parameter


@dataclass
class Family:
    """Siblings of one class whose weights are equal. seen: steps in which their gradients were, too."""

    members: list[Member]
    seen: int = 0


class Alike(Check):
    rules = (RULE,)
    interval = "first steps, then in turn to step 64"
    spaced = True

    def __init__(self) -> None:
        self._families: dict[int, list[Family]] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first > SETTLED:
            loop.off(self)
            return
        if moment.closure:
            return
        families = self._families.get(moment.index)
        if families is None:
            families = self._families[moment.index] = _families(loop, moment.index)
        self._families[moment.index] = families = [f for f in families if self._goes_on(loop, moment.step, f)]
        if not families and len(self._families) == len(loop.optimizers) and not any(self._families.values()):
            loop.off(self)

    def _goes_on(self, loop: Loop, step: int, family: Family) -> bool:
        """Whether members are left that may be equal: those without a gradient in this step are."""
        told = {id(m): numbers for m in family.members if (numbers := _numbers(m.weight.grad))}
        groups: dict[tuple[float, ...], list[Member]] = {}
        for member in family.members:
            if id(member) in told:
                groups.setdefault(told[id(member)], []).append(member)
        if len(told) < 2:
            return True
        twins: list[Member] = max(groups.values(), key=len)
        twins = [m for k, m in enumerate(twins) if not k or _equal(twins[0], m, whole=family.seen + 1 == STEPS)]
        if len(twins) < 2:
            return False
        family.members = [m for m in family.members if id(m) not in told or m in twins]
        family.seen += 1
        if family.seen < STEPS:
            return True
        first, others = twins[0], [m.name for m in twins[1:]]
        loop.judge(
            RULE, step, RULE.margin(len(others), 0),
            lambda: {
                "message": f"{some(others)} began with the weights of {first.name} and got the same gradients in {STEPS} steps: "
                f"at step {step} the parameters are equal bit for bit, and stay so",
                "where": others[0], "severity": Severity.WARN,
                "evidence": f"{len(first.parameters)} parameters and their gradients compared in {len(twins)} modules",
            },
        )  # fmt: skip
        return False

    def drop(self) -> None:
        self._families = {}


def _families(loop: Loop, place: int) -> list[Family]:
    """The siblings with equal weights of which this optimizer holds the first, and some optimizer the others."""
    held = [{id(h.parameter) for h in of_one} for of_one in loop.held]
    found = []
    for parent, container in unwrapped(loop.model).named_modules():
        kinds: dict[tuple[object, ...], list[Member]] = {}
        if len(container._modules) < 2:
            continue
        for name, child in container.named_children():
            member = _member(f"{parent}.{name}" if parent else name, child)
            if member is not None and any(id(member.weight) in own for own in held):
                weight = member.weight
                kind = type(child), tuple(weight.shape), weight.stride(), weight.dtype, weight.device
                kinds.setdefault(kind, []).append(member)
        for members in kinds.values():
            if len(members) > 1:
                found += [f for f in _sorted(members) if id(f.members[0].weight) in held[place]]
    return found


def _member(name: str, module: nn.Module) -> Member | None:
    trained = tuple(p for p in module.parameters() if p.requires_grad and not nn.parameter.is_lazy(p))
    weight = next((p for p in trained if p.dim() > 1), None)
    return None if weight is None or not fit(weight) else Member(plain_name(name), trained, weight)


def _sorted(members: list[Member]) -> list[Family]:
    """Those whose weights are equal and not one number throughout, as those of an adapter that starts at zero are."""
    groups: dict[tuple[float, ...], list[Member]] = {}
    samples = torch.stack([spread(m.weight, FEW) for m in members]).tolist()
    for member, sample in zip(members, samples, strict=True):
        groups.setdefault(tuple(sample), []).append(member)
    apart = [
        [m for k, m in enumerate(group) if not k or (m.weight is not group[0].weight and _same(group[0], m))]
        for numbers, group in groups.items() if len(group) > 1 and len(set(numbers)) > 1
    ]  # fmt: skip
    return [Family(group) for group in apart if len(group) > 1]


def _numbers(gradient: Tensor | None) -> tuple[float, ...] | None:
    """A sample of a gradient that tells something: it is there, finite, and not zero."""
    if gradient is None or not fit(gradient):
        return None
    numbers = tuple(spread(gradient).tolist())
    return numbers if any(numbers) and all(map(math.isfinite, numbers)) else None


def _same(first: Member, second: Member) -> bool:
    """Whether the parameters are equal, by samples."""
    return _pairs_equal(first.parameters, second.parameters, whole=False)


def _equal(first: Member, second: Member, whole: bool) -> bool:
    """Whether parameters and gradients are equal, and no two of them one tensor. whole: all numbers, and not samples."""
    if any(p is q for p, q in zip(first.parameters, second.parameters, strict=False)):
        return False
    own, other = [p.grad for p in first.parameters], [p.grad for p in second.parameters]
    if [g is None for g in own] != [g is None for g in other]:
        return False
    gradients = _pairs_equal([g for g in own if g is not None], [g for g in other if g is not None], whole)
    return gradients and _pairs_equal(first.parameters, second.parameters, whole)


def _pairs_equal(first: Iterable[Tensor], second: Iterable[Tensor], whole: bool) -> bool:
    own, other = list(first), list(second)
    return len(own) == len(other) and all(_one(a, b, whole) for a, b in zip(own, other, strict=True))


def _one(first: Tensor, second: Tensor, whole: bool) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        return False
    if not fit(first) or not fit(second) or first.stride() != second.stride():
        return False
    if whole:
        return torch.equal(first.detach(), second.detach())
    return torch.equal(spread(first), spread(second))
