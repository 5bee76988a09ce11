"""RUN-13: the gradient that a step applies is within the declared norm, and was clipped where it was unscaled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from karat.invariants.run.run13_clipping import RULE
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop

FULL, HALF = 1e-3, 1e-2
"""Relative error of a norm in float32, and of one whose gradients were rounded to half precision."""
EXACT = 1e-4
"""How near the scaled norm is to the limit when it was clipped to it before it was unscaled."""
SCALED = 16.0
"""Loss scales below this are not told from 1."""


class Clipping(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._scale: dict[int, float] = {}
        self._slack: dict[int, float] = {}

    def start(self, loop: Loop) -> None:
        if loop.spec.clip_norm is None:
            loop.not_checked(RULE, "no norm is declared: Spec(clip_norm=…)")
            loop.off(self)

    def look(self, loop: Loop, moment: Moment) -> None:
        for scaler in loop.attached.scalers[:1]:
            if isinstance(scale := scaler._scale, torch.Tensor):
                loop.transfer.ask([scale], lambda numbers: self._scale.__setitem__(moment.index, numbers[0]))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        clip, norm = loop.spec.clip_norm or math.inf, moment.norm
        if not moment.norms or not math.isfinite(norm):
            return  # what is not finite is judged by `finite`
        scale = self._scale.pop(moment.index, 1.0)
        if getattr(moment.optimizer, "grad_scale", None) is not None:  # fused: unscaled inside the step
            norm /= scale
        if scale >= SCALED and abs(norm * scale - clip) <= EXACT * clip:
            loop.found(
                RULE, f"the gradients were clipped to {clip:g} before they were unscaled: their norm is {norm:.4g}, "
                f"1/{scale:g} of the limit",
                step=moment.step, margin=norm * scale - clip, evidence=f"loss scale {scale:g}; norm x scale = "
                f"{norm * scale:.6g}; scaler.unscale_(optimizer) is to come before clip_grad_norm_",
            )  # fmt: skip
            return
        slack = self._slack.get(moment.index)
        if slack is None:
            half = any(g.dtype in (torch.float16, torch.bfloat16) for g in moment.grads.values())
            slack = self._slack[moment.index] = HALF if half else FULL
        limit = clip * (1 + slack)
        loop.judge(RULE, moment.step, RULE.margin(norm, limit), partial(_too_large, loop, moment, clip, norm))


def _too_large(loop: Loop, moment: Moment, clip: float, norm: float) -> dict[str, Any]:
    whole = "" if moment.whole else "at least "
    return {
        "message": f"the gradients of step {moment.step} have norm {whole}{norm:.4g}, above the declared {clip:g}: "
        + _cause(loop, moment, clip),
        "evidence": f"{len(moment.norms)} of {len(moment.grads)} gradients looked at; largest of one "
        f"{max(moment.norms.values()):.4g}",
    }


def _cause(loop: Loop, moment: Moment, clip: float) -> str:
    held = loop.held[moment.index]
    norms = moment.norms
    names = {k: held[k].name for k in norms}
    at_limit = 1 - FULL, 1 + FULL
    if all(norm <= clip * at_limit[1] for norm in norms.values()) and any(
        norm >= clip * at_limit[0] for norm in norms.values()
    ):
        return f"each parameter is clipped by itself, all {len(norms)} together are not"
    for part in dict.fromkeys(_ancestor(name, depth) for depth in (1, 2) for name in names.values()):
        inside = _norm(norms[k] for k, name in names.items() if name == part or name.startswith(part + "."))
        if part and clip * at_limit[0] <= inside <= clip * at_limit[1]:
            rest = _norm(norms[k] for k, name in names.items() if not (name == part or name.startswith(part + ".")))
            return f"only {part} is clipped, the rest has norm {rest:.4g}"
    own = _norm(norms[k] for k, name in names.items() if name)
    if own <= clip * at_limit[1] and not all(names.values()):
        return "the optimizer also holds parameters outside the model, which are not clipped"
    batches = f", or within the {moment.forwards} batches that the step accumulates" if moment.forwards > 1 else ""
    return f"nothing clipped them between the last backward and the step; clip_grad_norm_ comes too early or too late{batches}"


def _ancestor(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _norm(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))
