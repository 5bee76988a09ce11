"""RUN-9: no step on a gradient, a parameter or a loss that is not finite; and where it began.

The norms that are read anyway show that something is not; then each tensor is looked at exactly. What is broken already
comes first: parameters before the batch, the batch before the forward, the forward before the backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.run09_finite import RULE
from karat.invariants.runtime.preflight.trees import leaves, spelled
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import some, unwrapped
from karat.invariants.runtime.watching.reduction import is_finite


class Finite(Check):
    rules = (RULE,)
    heard, heard_rules = True, (RULE,)

    def __init__(self) -> None:
        self._losses: dict[str, float] = {}
        self._sound = -1
        """The last step whose gradients were all looked at and finite."""
        self._said = False
        self._lost = -1
        """The step whose logged loss was not finite."""
        self._buffers: list[str] = []
        """Those that were finite at the start."""

    def start(self, loop: Loop) -> None:
        buffers = unwrapped(loop.model).named_buffers()
        self._buffers = [n for n, b in buffers if b.is_floating_point() and is_finite(b)]

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """A loss that is logged before its step is judged at the step; one logged after it, at once."""
        given = {"loss": logged.get("loss"), **logged.get("losses", {})}
        if not loop.forwards:
            return  # it is not known to which step it belongs: the model is not called as a whole
        if loop.applied == loop.forwards and loop.step:
            numbers = {name: value for name, value in given.items() if isinstance(value, (int, float))}
            self._judge_losses(loop, loop.step - 1, numbers)
            return
        self._losses = {}
        for name, value in given.items():
            if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
                loop.transfer.ask([value.detach().reshape(()).float()], partial(self._keep, name, loop=loop))
            elif isinstance(value, (int, float)):
                self._keep(name, [float(value)], loop)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.scaled:
            self._losses = {}
            return
        if self._losses:
            self._judge_losses(loop, moment.step, self._losses)
            self._losses = {}
        if math.isfinite(sum(moment.norms.values())):
            if moment.whole:
                self._sound = moment.step
            loop.held_for(RULE, moment.step)
            return
        grads = moment.grads
        bad = [i for i, n in moment.norms.items() if not math.isfinite(n) and not is_finite(grads[i])]
        if not bad:
            return  # the norm overflowed, the numbers did not
        with torch.no_grad():
            broken = [name for name, p in loop.parameters.items() if p.is_floating_point() and not is_finite(p)]
            if (moment.closure and not broken) or (broken and self._said):
                return  # a line search that turned back; what was said before, going on
            where, message, step = self._cause(loop, moment, bad, broken)
        self._said = True
        loop.judge(
            RULE, step, RULE.margin(len(bad), 0),
            lambda: {
                "message": message, "where": where,
                "evidence": f"{len(bad)} of {len(moment.norms)} gradients that were looked at hold NaN or an infinity",
            },
        )  # fmt: skip

    def finish(self, loop: Loop) -> None:
        """What the last step made is looked at here, for no step follows; and buffers, which no gradient shows."""
        buffers = dict(unwrapped(loop.model).named_buffers())
        tensors = {**{n: buffers[n] for n in self._buffers if n in buffers}, **loop.parameters}
        broken = [n for n, t in tensors.items() if n in loop.parameters and t.is_floating_point() and not is_finite(t)]
        broken += [
            n for n in tensors if n not in loop.parameters and bool(tensors[n].isnan().any())
        ]  # -inf may be a mask
        if broken and not loop.tallies[RULE.id].violations:
            loop.judge(
                RULE, max(loop.step - 1, 0), RULE.margin(len(broken), 0),
                lambda: {
                    "message": f"after the last step {some(broken)} holds NaN or an infinity, which no gradient showed",
                    "where": broken[0], "phase": "at the end",
                    "evidence": f"{len(broken)} of {len(tensors)} parameters and buffers",
                },
            )  # fmt: skip

    def drop(self) -> None:
        self._losses = {}

    def _keep(self, name: str, numbers: list[float], loop: Loop) -> None:
        self._losses[name] = numbers[0]
        if not math.isfinite(numbers[0]):
            loop.stir()

    def _judge_losses(self, loop: Loop, step: int, losses: Mapping[str, float]) -> None:
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if not bad:
            return
        name, value = next(iter(bad.items()))
        self._lost = loop.step
        with torch.no_grad():
            origin = self._origin(loop)[1]
        loop.judge(
            RULE, step, RULE.margin(len(bad), 0),
            lambda: {"message": f"the logged {name} is {value}" + (f": {origin}" if origin else ""), "where": "loss",
                     "evidence": ", ".join(f"{n} = {v}" for n, v in bad.items())},
        )  # fmt: skip

    def _cause(self, loop: Loop, moment: Moment, bad: list[int], broken: list[str]) -> tuple[str, str, int]:
        """(where, message, step of the first effect)."""
        names = [moment.held[i].name or "a parameter outside the model" for i in bad]
        if broken:
            if 0 <= moment.step - 1 == self._sound:
                since = f"since the update of step {moment.step - 1}, whose gradients were finite"
                return broken[0], f"{some(broken)} holds NaN or an infinity {since}", moment.step - 1
            return broken[0], f"{some(broken)} holds NaN or an infinity before the step", moment.step
        place, origin = self._origin(loop)
        if origin:
            return place, f"the gradient of {some(names)} is not finite: {origin}", moment.step
        if self._from_the_loss(loop):
            return "loss", (
                f"the gradient of {some(names)} is not finite, the parameters and the outputs are: it begins in the loss, "
                "after the model"
            ), moment.step  # fmt: skip
        last = names[-1]
        return last, (
            f"the gradient of {some(names)} is not finite, the parameters and the forward are: it begins in the "
            f"backward, at or after {last.rpartition('.')[0] or last}"
        ), moment.step  # fmt: skip

    def _from_the_loss(self, loop: Loop) -> bool:
        """Whether the logged loss of the step is not finite, or what came back to the outputs that were kept."""
        captured = loop.captured
        came = captured.gradients.values() if captured is not None else ()
        return self._lost == loop.step or any(not is_finite(g) for g in came)

    def _origin(self, loop: Loop) -> tuple[str, str]:
        """The first of batch and modules that is not finite; empty where none is, or it cannot be known."""
        call = loop.call
        if call is None:
            return "", ""
        module, args, kwargs, autocast = call
        for path, t in leaves((args, kwargs)):
            if t.is_floating_point() and not is_finite(t):
                return "batch", f"the batch itself holds NaN or an infinity ({spelled(path[1:])})"
        inner = unwrapped(module)
        captured = Captured("", inner, args, kwargs, {}, inner.training, autocast)
        found: list[str] = []
        handles = [
            part.register_forward_hook(partial(_look, name or "the model", found))
            for name, part in inner.named_modules()
        ]
        try:
            with captured.undisturbed():
                captured.again()
        except Exception:
            return "", ""  # the forward cannot be run again
        finally:
            for handle in handles:
                handle.remove()
        return (found[0], f"the first output that is not finite is that of {found[0]}") if found else ("", "")


def _look(name: str, found: list[str], module: nn.Module, args: Any, output: Any) -> None:
    if not found and any(t.is_floating_point() and not is_finite(t) for _, t in leaves(output)):
        found.append(name)
