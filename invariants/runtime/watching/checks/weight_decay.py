"""RUN-18: the weight decay of each parameter's group is as declared; without a declaration, no negative number."""

from __future__ import annotations

import math
from typing import Any

from karat.invariants.run.rule import Severity
from karat.invariants.run.run18_weight_decay import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some


class WeightDecay(Check):
    rules = (RULE,)
    interval = "at the start, every K, and when a group changes"

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
            if spec.decay or spec.no_decay:
                loop.not_checked(RULE, f"{type(moment.optimizer).__name__} keeps no weight_decay in its groups")
            return
        for place, group in enumerate(groups):
            value = float(group.get("weight_decay") or 0.0)
            loop.judge(
                RULE, moment.step, RULE.margin(float(not (0 <= value < math.inf)), 0),
                lambda value=value, place=place: {
                    "message": f"the weight decay of group {place} is {value:g}", "where": f"group {place}",
                    "severity": Severity.WARN, "evidence": f"{type(moment.optimizer).__name__}, group {place}",
                },
            )  # fmt: skip
        if spec.decay or spec.no_decay:
            self._declared(loop, moment)

    def _declared(self, loop: Loop, moment: Moment) -> None:
        spec = loop.spec
        decays, spared = [], []
        for g, group in enumerate(moment.optimizer.param_groups):
            value = float(group.get("weight_decay") or 0.0)
            for parameter in group["params"]:
                name = loop.names.get(id(parameter), "")
                if not name or covered(name, spec.frozen) or not parameter.requires_grad:
                    continue
                if covered(name, spec.no_decay):
                    if value != 0:
                        decays.append((name, g, value))
                elif covered(name, spec.decay) and value == 0:
                    spared.append((name, g, value))
        for wrong, says, field in ((decays, "decays, declared is that it does not", "no_decay"),
                                   (spared, "does not decay, declared is that it does", "decay")):  # fmt: skip
            loop.judge(
                RULE, moment.step, RULE.margin(len(wrong), 0),
                lambda wrong=wrong, says=says, field=field: {
                    "message": f"{wrong[0][0]} {says}: weight_decay = {wrong[0][2]:g} in group {wrong[0][1]}"
                    + (f"; {len(wrong)} parameters in all: {some(n for n, _, _ in wrong)}" if len(wrong) > 1 else ""),
                    "where": wrong[0][0], "evidence": f"Spec.{field} = {list(getattr(spec, field))}",
                },
            )  # fmt: skip
