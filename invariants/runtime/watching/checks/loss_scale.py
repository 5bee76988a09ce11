"""RUN-14: the gradients of a scaled loss are unscaled once before they are applied, and the scaler does not skip for ever.

Read off the GradScaler's own records; where a linear layer gives the captured output, also off the numbers: its bias
gets the sum of the gradients of its output, times what was done to the gradients since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState

from karat.invariants.run.rule import Severity
from karat.invariants.run.run14_loss_scale import RULE
from karat.invariants.runtime.watching.attached import bare
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import Loop

LARGE = 16.0
"""Scales nearer to 1 than this are not told from it."""
NEAR = 0.02
"""Relative error of a factor that was read off gradients in half precision."""
LEAST_SCALED = 0.02
"""Sum of all gradients at the outputs, over the scale, from which on the loss was scaled: that of a mean is about 1."""
SKIPS, SKIPS_AT_START = 8, 24
"""Skipped steps in a row that are reported, and before the first step, where a scaler looks for its scale."""


class LossScale(Check):
    rules = (RULE,)

    def __init__(self) -> None:
        self._scale: dict[int, float] = {}
        self._products: dict[int, list[float]] = {}
        self._terms: dict[str, list[Tensor]] = {}
        self._arrived: dict[str, float] = {}
        self._handles: list[Any] = []
        self._scaled: set[int] = set()
        self._apart: set[int] = set()
        self._since, self._usual = 0, 1
        self._base: float | None = None

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        if (_scaler(loop) is None and loop.scaler is None) or len(loop.optimizers) > 1:
            return
        terms = {**(logged.get("losses") or {}), "loss": logged.get("loss")}
        for name, term in terms.items():
            if isinstance(term, Tensor) and term.requires_grad and term.numel() == 1 and torch.is_grad_enabled():
                arrivals = self._terms.setdefault(str(name), [])
                self._handles.append(term.register_hook(harmless(loop, self, arrivals.append)))  # type: ignore[no-untyped-call]

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        count = loop.forwards - self._since
        if count <= self._usual or not torch.is_grad_enabled():
            return
        over = count - 2 * self._usual
        if over % SKIPS == 0 and over >= 0 and (scaler := _scaler(loop)) is not None:
            self._skipped(loop, scaler)

    def _skipped(self, loop: Loop, scaler: Any) -> None:
        """Many forwards since the last step: the scale tells how many steps were skipped since the first look."""
        if not isinstance(scaler._scale, Tensor):
            return
        scale, factor = scaler._scale.item(), scaler.get_backoff_factor()
        base, self._base = self._base, self._base or scale
        if base is None or not 0 < factor < 1 or not 0 < scale < base:
            return
        skips = 1 + round(math.log(scale / base) / math.log(factor))
        allowed = SKIPS if loop.step else SKIPS_AT_START
        if skips > allowed:
            final = skips > SKIPS_AT_START
            loop.judge(
                RULE, loop.step, RULE.margin(skips, allowed),
                lambda: {
                    "message": f"the scaler skipped {skips} steps in a row since step {loop.step}: the gradients are not "
                    f"finite at any scale, which is down to {scale:.4g}",
                    "where": "scaler" if final else "", "severity": Severity.FAIL if final else Severity.WARN,
                    "evidence": f"scale {base:.6g} before; {loop.forwards - self._since} forwards without a step",
                },
            )  # fmt: skip

    # -- at a step ----------------------------------------------------------------------------------------------------

    def look(self, loop: Loop, moment: Moment) -> None:
        loop.attached.meet(moment.optimizer)
        scaler = _scaler(loop, moment.optimizer)
        if scaler is None and moment.step == 1:
            loop.not_checked(RULE, "no torch.amp.GradScaler that is enabled was given or found")
            loop.off(self)
        if scaler is None or not isinstance(scaler._scale, Tensor):
            return
        loop.transfer.ask([scaler._scale], lambda numbers: self._scale.__setitem__(moment.index, numbers[0]))
        arrived = {name: grads[0].detach().reshape(()) for name, grads in self._terms.items() if len(grads) == 1}
        if arrived:
            names = list(arrived)
            loop.transfer.ask(
                [arrived[n].float() for n in names],
                lambda numbers: self._arrived.update(zip(names, numbers, strict=True)),
            )
        if loop.dense(moment.step) and moment.forwards == 1 and (pairs := _biases(loop)):
            asked = [product for bias, sums in pairs for product in (bias @ sums, sums @ sums, bias @ bias)]
            loop.transfer.ask(asked, partial(self._products.__setitem__, moment.index))

    def before_step(self, loop: Loop, moment: Moment) -> None:
        scaler = _scaler(loop, moment.optimizer)
        scale = self._scale.pop(moment.index, 1.0)
        factor = _factor(self._products.pop(moment.index, []))
        arrived, self._arrived = self._arrived, {}
        if scaler is None:
            return
        if _through(scaler, moment.optimizer):
            self._scaled.add(moment.index)
            if scale >= LARGE:
                self._once(loop, moment, scale, factor, arrived)
        elif scale >= LARGE and moment.index not in self._apart:
            self._directly(loop, moment, scaler, scale, factor)
        loop.held_for(RULE, moment.step)

    def _once(
        self, loop: Loop, moment: Moment, scale: float, factor: float | None, arrived: Mapping[str, float]
    ) -> None:
        """The scaler unscaled: was the loss scaled, and was that the only unscaling?"""
        fused = getattr(moment.optimizer, "grad_scale", None) is not None
        expected = 1.0 if fused else 1 / scale
        if factor is not None and abs(factor / expected * scale - 1) <= NEAR:
            self._wrong(
                loop, moment, f"the gradients are divided by the scale of {scale:g} twice: once by hand, once by the scaler",
                f"gradients are {factor:.4g} of those that came back to the output, 1/{scale:g} is right",
            )  # fmt: skip
        for name in [name for name, gradient in arrived.items() if gradient == 1.0]:
            self._wrong(
                loop, moment, f"the term {name!r} was not scaled before backward, and the scaler divides its gradient by "
                f"{scale:g}",
                f"gradients that arrived at the terms: {', '.join(f'{n} {g:g}' for n, g in arrived.items())}",
            )  # fmt: skip

    def _directly(self, loop: Loop, moment: Moment, scaler: Any, scale: float, factor: float | None) -> None:
        """A step that the scaler did not take: are its gradients scaled?"""
        idle = not scaler._per_optimizer_states and scale == scaler._init_scale and not scaler._get_growth_tracker()
        scaled = (
            moment.index in self._scaled or idle
        )  # idle: nobody stepped through it so far, and yet it scaled something
        if idle and scaler is not loop.scaler and not _arrived_scaled(loop, scale):
            scaled = moment.index in self._scaled  # it may have scaled another loop's loss
        if not scaled or (factor is not None and abs(factor - 1) > NEAR):
            self._apart.add(moment.index)
            return
        self._wrong(
            loop, moment, f"optimizer.step() is called directly, with gradients that are scaled by {scale:g}: "
            "scaler.step(optimizer) unscales them",
            "the scaler has no record of this step" + (f"; gradients are {factor:.4g} of the output's" if factor else ""),
        )  # fmt: skip

    def _wrong(self, loop: Loop, moment: Moment, message: str, evidence: str) -> None:
        loop.judge(RULE, moment.step, RULE.margin(1, 0), lambda: {"message": message, "evidence": evidence})

    def after_step(self, loop: Loop, moment: Moment) -> None:
        self._since, self._base = loop.forwards, None
        if moment.forwards:
            self._usual = moment.forwards
        if self._handles:
            self.drop()

    def drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._terms = [], {}


def _scaler(loop: Loop, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """The scaler at work, of several the one that takes the optimizer's step; one that may still be; None without one."""
    scalers = loop.attached.scalers or loop.attached.possible
    if optimizer is not None and len(scalers) > 1:
        scalers = [s for s in scalers if _through(s, optimizer)] or scalers
    return next(iter(scalers), None)


def _arrived_scaled(loop: Loop, scale: float) -> bool:
    """Whether the gradients that came back to the outputs are as large as those of a scaled loss."""
    captured = loop.captured
    if captured is None or not captured.gradients:
        return False
    return sum(float(g.float().abs().sum()) for g in captured.gradients.values()) > LEAST_SCALED * scale


def _through(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler takes this step, or unscaled for it: both leave a record of it."""
    records = scaler._per_optimizer_states
    record = records.get(id(optimizer)) or records.get(id(bare(optimizer)))
    if record is None:
        return False
    return record["stage"] is not OptState.READY or getattr(optimizer, "grad_scale", None) is not None


def _biases(loop: Loop) -> list[tuple[Tensor, Tensor]]:
    """Gradients of biases that may be those of the captured output's layer, each with the sum of the output's gradient."""
    captured = loop.captured
    if captured is None or captured.main is None or captured.main not in captured.gradients:
        return []
    came = captured.gradients[captured.main].detach().float()
    if not came.ndim:
        return []
    sums = came.reshape(-1, came.shape[-1]).sum(dim=0)
    layers = [m for m in captured.module.modules() if isinstance(m, nn.Linear) and m.out_features == came.shape[-1]]
    grads = [m.bias.grad for m in layers if m.bias is not None and m.bias.grad is not None]
    return [(g.detach().float(), sums) for g in grads if g.shape == sums.shape and g.device == sums.device][-4:]


def _factor(products: list[float]) -> float | None:
    """The factor between the sum and a bias' gradient that is a multiple of it; None where none is."""
    for k in range(0, len(products), 3):
        across, sums, own = products[k : k + 3]
        if sums > 0 and own > 0 and across * across >= (1 - NEAR * NEAR) * sums * own:
            return across / sums
    return None
