"""RUN-33: under autocast, layers compute in its type. Looked at once, on the first forward of the loop, run again."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.rule import Severity
from karat.invariants.run.run33_precision import RULE
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.naming import plain_name, some

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Autocast(Check):
    rules = (RULE,)
    interval = "once"
    of_forward = True

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if captured is None:
            return
        loop.rest(self, "before_step")
        types = dict(captured.autocast)
        if not types:
            return
        found: list[str] = []
        handles = [
            module.register_forward_hook(partial(_layer, found, plain_name(name), types))
            for name, module in captured.module.named_modules() if isinstance(module, LAYERS)
        ]  # fmt: skip
        try:
            with captured.undisturbed():
                captured.again()
        except NotRun as why:
            loop.not_checked(RULE, str(why))
            return
        finally:
            for handle in handles:
                handle.remove()
        names = list(dict.fromkeys(found))
        loop.judge(RULE, moment.step, RULE.margin(len(names), 0), partial(_bypassed, names, types))


def _layer(
    found: list[str], name: str, types: dict[str, torch.dtype], module: nn.Module, args: Any, output: Any
) -> None:
    kind = output.device.type if isinstance(output, Tensor) else ""
    if kind in types and torch.is_autocast_enabled(kind) and output.dtype is torch.float32:
        found.append(name)


def _bypassed(names: list[str], types: dict[str, torch.dtype]) -> dict[str, Any]:
    kinds = ", ".join(str(t).removeprefix("torch.") for t in types.values())
    return {
        "message": f"{names[0]} gives float32 under autocast to {kinds}: its forward does not go through autocast",
        "where": names[0], "severity": Severity.WARN, "evidence": f"{len(names)} layers: {some(names)}",
    }  # fmt: skip
