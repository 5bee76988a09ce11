"""RUN-42: the optimizer comes with the moments of many steps, and the weights are those of no step: they were not loaded.

Norms start at exactly one and zero, and the weights of linear and convolution layers between two ends that they reach: a
few steps of training carry some beyond. Both are compared with what the moments say of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from karat.invariants.run.rule import Severity
from karat.invariants.run.run42_resume import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some
from karat.invariants.runtime.watching.sampling import fit, rate_of

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
STEPS = 3
"""Steps that the moments must have seen."""
LEAST_MOVE = 1e-5
"""Of a step: from which on a weight of one cannot have stayed one."""
EXPECTED = 30.0
"""Weights that the steps before must have carried beyond the ends, for none to be there."""
AT_THE_ENDS = 12.0
"""e to minus this is how rarely none of a layer's first weights lies in the outermost of its range."""
LONGEST = 100
"""Steps before that are counted on: their rates may have been lower."""


class Resumed(Check):
    rules = (RULE,)
    interval = "first step"

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index != 0:
            return
        loop.off(self)
        found = fresh(loop, moment)
        if not found:
            return
        steps = [
            int(n) for name in found if (n := moment.optimizer.state[loop.parameters[name]].get("step")) is not None
        ]
        earlier = f"{max(steps)} steps" if steps else "earlier steps"
        loop.judge(
            RULE, moment.step, RULE.margin(1.0, 0.0),
            lambda: {
                "message": f"{type(moment.optimizer).__name__} has the moments of {earlier}, and the weights are as they were "
                "initialised: the model's state was not loaded (strict=False says nothing of names that it does not know)",
                "where": found[0], "severity": Severity.WARN, "phase": "before the first step",
                "evidence": f"{some(found)}: exactly ones, or uniform between the ends of their initialisation",
            },
        )  # fmt: skip


def fresh(loop: Loop, moment: Moment) -> list[str]:
    """The weights with moments that never moved, where all that can be told are so; else none."""
    optimizer = moment.optimizer
    if not optimizer.state:
        return []
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    norms: list[str] = []
    layers: list[str] = []
    expected, trained = 0.0, False
    for name, module in modules(loop):
        weight = module.weight
        assert isinstance(weight, Tensor)
        state, group = optimizer.state.get(weight), groups.get(id(weight))
        if not state or group is None or weight.dtype is not torch.float32 or not fit(weight):
            continue
        move = step_size(state, group)
        if move is None or steps_of(state) < STEPS or move <= 0:
            continue
        if isinstance(module, NORMS):
            if move > LEAST_MOVE:
                if not bool((weight == 1).all()):
                    return []
                norms.append(name)
            continue
        end = 1 / math.sqrt(max(1, weight[0].numel()))
        largest = float(weight.detach().abs().max())
        if largest > end or largest < end * (1 - min(1.0, AT_THE_ENDS / weight.numel())):
            trained = True  # or of another initialisation
            continue
        layers.append(name)
        expected += weight.numel() * move * math.sqrt(min(steps_of(state), LONGEST)) / (2 * end)
    return norms or (layers if expected >= EXPECTED and not trained else [])


def modules(loop: Loop) -> Iterator[tuple[str, nn.Module]]:
    """The layers whose first weights are known, each under the name of its weight."""
    names = {id(p): n for n, p in loop.parameters.items()}
    for module in loop.model.modules():
        weight = getattr(module, "weight", None)
        known = type(module) is nn.Linear or isinstance(module, (*NORMS, _ConvNd))
        if (
            known
            and isinstance(weight, nn.Parameter)
            and not getattr(module, "transposed", False)
            and id(weight) in names
        ):
            yield names[id(weight)], module


def steps_of(state: dict[str, object]) -> int:
    """Steps that the moments of a parameter have seen; of those that count none, as many as are needed."""
    step = state.get("step")
    if step is None:
        return STEPS
    return int(step) if isinstance(step, (int, float, Tensor)) else 0


def step_size(state: dict[str, object], group: dict[str, object]) -> float | None:
    """By how much the last step of Adam, or of SGD with momentum, moved an element, on average."""
    rate = rate_of(group)
    mean, square, buffer = state.get("exp_avg"), state.get("exp_avg_sq"), state.get("momentum_buffer")
    if rate is None:
        return None
    if isinstance(mean, Tensor) and isinstance(square, Tensor) and mean.shape == square.shape:
        return rate * float((mean.abs() / (square.sqrt() + 1e-8)).mean())
    return rate * float(buffer.abs().mean()) if isinstance(buffer, Tensor) else None
