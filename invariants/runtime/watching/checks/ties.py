"""RUN-20: names that are tied are one parameter, by identity, at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from karat.invariants.run.cadence import TURNS, turn
from karat.invariants.run.rule import Severity
from karat.invariants.run.run20_ties import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain_name, unwrapped
from karat.invariants.runtime.watching.sampling import fit, spread, window

MOST = 16
"""Ties that are looked at in a step."""


@dataclass(frozen=True)
class Tie:
    """Two names for one parameter: as said, as found, and whether it was declared."""

    names: tuple[str, str]
    paths: tuple[tuple[str, ...], tuple[str, ...]]
    declared: bool


class Ties(Check):
    rules = (RULE,)
    interval = TURNS
    spaced = True

    def __init__(self) -> None:
        self._ties: list[Tie] | None = None
        self._root = nn.Module()

    def look(self, loop: Loop, moment: Moment) -> None:
        if self._ties is None:
            self._begin(loop, moment.step)
        loop.rest(self, "look")
        if not self._ties:
            loop.rest(self, "before_step")

    def before_step(self, loop: Loop, moment: Moment) -> None:
        ties = self._ties or []
        if not ties:
            return
        for n in range(len(ties)) if loop.dense(moment.step) else window(len(ties), MOST, turn(moment.step)):
            first, second = (_at(self._root, path) for path in ties[n].paths)
            if first is not second:
                self._broken(loop, moment.step, ties[n], first, second)
            else:
                loop.held_for(RULE, moment.step, RULE.margin(0, 0))

    def _begin(self, loop: Loop, step: int) -> None:
        root = self._root = unwrapped(loop.model)
        named = {plain_name(n): (n, p) for n, p in root.named_parameters(remove_duplicate=False)}
        paths = {plain: tuple(raw.split(".")) for plain, (raw, _) in named.items()}
        declared = [(a, b) for a, b in loop.spec.tied if a in named and b in named]
        first: dict[int, str] = {}
        found = []
        for name, (_, parameter) in named.items():
            original = first.setdefault(id(parameter), name)
            if original != name and (original, name) not in declared and (name, original) not in declared:
                found.append((original, name))
        self._ties = [Tie((a, b), (paths[a], paths[b]), (a, b) in declared) for a, b in [*declared, *found]]
        if not self._ties:
            loop.not_checked(RULE, "no two names are one parameter, and Spec.tied declares none")
        self._copies(loop, step, {name: p for name, (_, p) in named.items()})

    def _broken(self, loop: Loop, step: int, tie: Tie, first: nn.Parameter | None, second: nn.Parameter | None) -> None:
        if not tie.declared and (first is None or second is None):  # a part was taken out of the model
            return
        held = {id(p) for o in loop.optimizers for g in o.param_groups for p in g["params"]}
        meant = not tie.declared and id(first) in held and id(second) in held
        both = first is not None and second is not None
        equal = first is not None and second is not None and first.shape == second.shape and _equal(first, second)
        loop.judge(
            RULE, step, RULE.margin(1, 0),
            lambda: {
                "message": f"{tie.names[0]} and {tie.names[1]} are two parameters"
                + (", with equal values still" if equal else " with different values" if both else ", one of them gone")
                + (f": they were one until step {step}" if not tie.declared or step else ", declared is one"),
                "where": tie.names[1], "severity": Severity.WARN if meant else Severity.FAIL,
                "evidence": f"{sum(id(p) in held for p in (first, second))} of the two are in the optimizers",
            },
        )  # fmt: skip

    def _copies(self, loop: Loop, step: int, named: dict[str, nn.Parameter]) -> None:
        """An embedding and an output layer that start with equal values in two parameters: a tie that was lost."""
        embeddings = [f"{plain_name(n)}.weight" for n, m in self._root.named_modules() if isinstance(m, nn.Embedding)]
        linear = [f"{plain_name(n)}.weight" for n, m in self._root.named_modules() if isinstance(m, nn.Linear)]
        said = {name for tie in self._ties or [] for name in tie.names}
        for a in embeddings:
            for b in linear:
                first, second = named.get(a), named.get(b)
                if first is None or second is None or first is second or a in said or first.shape != second.shape:
                    continue
                if first.data_ptr() != second.data_ptr() and fit(first) and fit(second) and _equal(first, second):
                    loop.found(
                        RULE, step=step, where=b, margin=-1.0, severity=Severity.WARN,
                        message=f"{b} is a copy of {a}: equal values in two parameters, which will drift apart",
                        evidence="Spec.tied declares that they are to be one",
                    )  # fmt: skip

    def drop(self) -> None:
        self._ties, self._root = [], nn.Module()


def _at(module: nn.Module, path: tuple[str, ...]) -> nn.Parameter | None:
    """The parameter of a path as the model has it now; None where there is none."""
    for name in path[:-1]:
        inner = module._modules.get(name)
        if inner is None:
            return None
        module = inner
    return module._parameters.get(path[-1])


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two parameters have equal values that are not all the same number: first on samples, then all."""
    if first.device != second.device or first.dtype != second.dtype or not fit(first) or not fit(second):
        return False
    sample = spread(first)
    if not torch.equal(sample, spread(second)) or bool((sample == sample[0]).all()):
        return False
    return torch.equal(first.detach(), second.detach())
