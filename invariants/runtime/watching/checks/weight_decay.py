"""RUN-18: the weight decay of each parameter's group is as declared; without a declaration, no negative number, and
not biases and norms instead of matrices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run18_weight_decay import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some

LEAST = 2
"""Matrices, and vectors that decay, from which on two lists count as exchanged."""


class WeightDecay(Check):
    rules = (RULE,)
    interval = "at the start, every K, and when a group changes"
    spaced = True

    def __init__(self) -> None:
        self._seen: dict[int, list[tuple[Any, int]]] = {}

    def before_step(self, loop: Loop, moment: Moment) -> None:
        now = [(g.get("weight_decay"), len(g["params"])) for g in moment.optimizer.param_groups]
        if self._seen.get(moment.index) == now and not loop.dense(moment.step):
            return
        changed = self._seen.get(moment.index) != now
        self._seen[moment.index] = now
        if not changed and moment.step < loop.every:
            return
        self._judge(loop, moment)

    def _judge(self, loop: Loop, moment: Moment) -> None:
        groups, spec = moment.optimizer.param_groups, loop.spec
        if all("weight_decay" not in g for g in groups):
            if spec.decay != () or spec.no_decay:
                loop.not_checked(RULE, f"{type(moment.optimizer).__name__} keeps no weight_decay in its groups")
            return
        for place, group in enumerate(groups):
            value = float(group.get("weight_decay") or 0.0)
            margin = RULE.margin(float(not (0 <= value < math.inf)), 0)
            loop.judge(RULE, moment.step, margin, partial(_no_decay_at_all, moment, place, value))
        if spec.decay != () or spec.no_decay:
            self._declared(loop, moment)
        else:
            self._swapped(loop, moment)

    def _swapped(self, loop: Loop, moment: Moment) -> None:
        """Biases and norms decay, and no matrix does: what decays and what is spared were exchanged."""
        tables = {id(m.weight) for m in loop.model.modules() if isinstance(m, nn.Embedding)}
        matrices: list[tuple[str, float]] = []
        vectors: list[tuple[str, float]] = []
        for group in moment.optimizer.param_groups:
            value = float(group.get("weight_decay") or 0.0)
            for parameter in group["params"]:
                if parameter.requires_grad and id(parameter) not in tables:
                    (matrices if parameter.ndim >= 2 else vectors).append((loop.names.get(id(parameter), ""), value))
        decays = [one for one in vectors if one[1] > 0]
        if min(len(matrices), len(vectors)) < LEAST or len(moment.optimizer.param_groups) < 2:
            return
        wrong = not any(value for _, value in matrices) and LEAST <= len(decays) >= len(vectors) / 2
        loop.judge(RULE, moment.step, RULE.margin(len(decays) * wrong, 0), partial(_exchanged, decays, matrices))

    def _declared(self, loop: Loop, moment: Moment) -> None:
        spec = loop.spec
        decays, spared, others = [], [], []
        for g, group in enumerate(moment.optimizer.param_groups):
            value = float(group.get("weight_decay") or 0.0)
            for parameter in group["params"]:
                name = loop.names.get(id(parameter), "")
                if not name or covered(name, spec.frozen) or not parameter.requires_grad:
                    continue
                if covered(name, spec.no_decay):
                    if value != 0:
                        decays.append((name, g, value))
                elif isinstance(spec.decay, tuple):
                    if covered(name, spec.decay) and value == 0:
                        spared.append((name, g, value))
                elif parameter.ndim >= 2 and not math.isclose(value, spec.decay, rel_tol=1e-6):
                    others.append((name, g, value))
        for wrong, says, field in ((decays, "decays, declared is that it does not", "no_decay"),
                                   (spared, "does not decay, declared is that it does", "decay"),
                                   (others, f"does not decay as declared, by {spec.decay}", "decay")):  # fmt: skip
            given = getattr(spec, field)
            evidence = f"Spec.{field} = {list(given) if isinstance(given, tuple) else given}"
            loop.judge(RULE, moment.step, RULE.margin(len(wrong), 0), partial(_other_decay, wrong, says, evidence))


def _no_decay_at_all(moment: Moment, place: int, value: float) -> dict[str, Any]:
    return {
        "message": f"the weight decay of group {place} is {value:g}", "where": f"group {place}", "severity": Severity.WARN,
        "evidence": f"{type(moment.optimizer).__name__}, group {place}",
    }  # fmt: skip


def _exchanged(decays: list[tuple[str, float]], matrices: list[tuple[str, float]]) -> dict[str, Any]:
    name, value = decays[0]
    return {
        "message": f"{len(decays)} biases and norms decay, {name} by {value:g}, and none of the {len(matrices)} matrices does: "
        "the groups with and without weight decay are swapped",
        "where": "swapped", "severity": Severity.WARN, "evidence": f"{some(n for n, _ in matrices)}: weight_decay = 0",
    }  # fmt: skip


def _other_decay(wrong: list[tuple[str, int, float]], says: str, evidence: str) -> dict[str, Any]:
    name, group, value = wrong[0]
    more = f"; {len(wrong)} parameters in all: {some(n for n, _, _ in wrong)}" if len(wrong) > 1 else ""
    return {
        "message": f"{name} {says}: weight_decay = {value:g} in group {group}{more}", "where": name, "evidence": evidence,
    }  # fmt: skip
