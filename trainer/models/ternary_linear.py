"""A linear map with ternary weights and 8-bit inputs: float32 master weight, straight-through gradients.

    y = x̂ Ŵᵀ with Ŵ = t · s, t in {-1, 0, 1}, one s for each 128 neighbours of a row; x̂ = q · absmax / 127, q in -127..127

The forward product is taken of the integers: for each group an int8 product, exact in int32, then its scales. That is
the straightforward product of Ŵ and x̂ but for float32 rounding (4e-7 of the largest output), and takes half the time on
a CPU with VNNI. Both gradients go straight through the roundings: dx = dy Ŵ, dW = dyᵀ x̂. Source: core/formulas/ternary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.formulas import ternary
from karat.core.formulas.ternary import GROUP, LEAST, LEVELS
from karat.invariants.runtime.torch_ops import TORCH

PRODUCTS_AT_A_TIME = 2**18
"""Elements of the int32 product that are scaled at a time: 1 MiB stays in cache (1.2 ms against 5.1 ms for 2048 x 512)."""


SAMPLED = 8
"""How many rows of a batch a guard may look at."""


class Trits(NamedTuple):
    """A ternary matrix: t (d_out, groups, 128) int8 and its scales (d_out, groups) float32."""

    trits_OGK: Tensor
    scales_OG: Tensor

    def dense(self) -> Tensor:
        """t · s as float32, (d_out, d_in)."""
        return (self.trits_OGK * self.scales_OG[..., None]).flatten(1)


class Codes(NamedTuple):
    """Rows of 8-bit numbers: q (rows, d_in) int8 and what one step is worth, (rows, 1) float32."""

    codes_RI: Tensor
    step_R1: Tensor

    def dense(self) -> Tensor:
        """q · step as float32, (rows, d_in)."""
        return self.codes_RI * self.step_R1


class Sample(NamedTuple):
    """One layer's last forward: the master weight, what was made of it, and of the first R rows input, codes and output."""

    weight_OI: Tensor
    trits_OGK: Tensor
    scales_OG: Tensor
    x_RI: Tensor
    codes_RI: Tensor
    y_RO: Tensor


def ternarise(weight_OI: Tensor) -> Trits:
    """Every weight as the nearest of -s, 0, s with s = max(mean |w|, 1e-8) of its group; no gradient. NaN gives 0."""
    grouped_OGK = weight_OI.detach().view(len(weight_OI), -1, GROUP)
    scales_OG = grouped_OGK.abs().mean(-1).clamp_min_(LEAST)
    return Trits(ternary.trit(grouped_OGK, scales_OG[..., None], TORCH).to(torch.int8), scales_OG)


def encode(x_RI: Tensor) -> Codes:
    """Every row as integers -127..127 times absmax / 127, to nearest; no gradient."""
    absmax_R1 = x_RI.detach().abs().amax(-1, keepdim=True).clamp_min_(LEAST)
    codes = (x_RI.detach() * (LEVELS / absmax_R1)).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
    return Codes(codes, absmax_R1 / LEVELS)


def integer_product(codes: Codes, weight: Trits) -> Tensor:
    """x̂ Ŵᵀ, (rows, d_out) float32: of each group an exact integer product, then scaled and added."""
    groups = weight.trits_OGK.shape[1]
    columns = [weight.trits_OGK[:, g].t().contiguous() for g in range(groups)]
    scales_GO = weight.scales_OG.t().contiguous()
    rows, width = len(codes.codes_RI), len(weight.trits_OGK)
    product_RO = torch.empty(rows, width)
    at_a_time = max(16, PRODUCTS_AT_A_TIME // width)
    for first in range(0, rows, at_a_time):
        part = product_RO[first : first + at_a_time]
        q = codes.codes_RI[first : first + at_a_time]
        for g in range(groups):
            exact = torch._int_mm(q[:, g * GROUP : (g + 1) * GROUP], columns[g])
            if g:
                part.addcmul_(exact.float(), scales_GO[g])
            else:
                torch.mul(exact, scales_GO[g], out=part)
        part.mul_(codes.step_R1[first : first + at_a_time])
    return product_RO


class _TernaryProduct(torch.autograd.Function):
    """x̂ Ŵᵀ, with the gradients of the dense product for x and W; what is kept for them is int8, a quarter of float32.

    x and W are there for their gradients alone: the product is that of `rounded`, the codes and trits made of them.
    """

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, *rounded: Tensor) -> Tensor:
        codes, step, trits, scales = rounded
        ctx.save_for_backward(*rounded)
        return integer_product(Codes(codes, step), Trits(trits, scales))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, step, trits, scales = ctx.saved_tensors
        (dy_RO,) = gradients
        dx_RI = dy_RO @ Trits(trits, scales).dense() if ctx.needs_input_grad[0] else None
        dw_OI = (dy_RO * step).t() @ codes.to(dy_RO.dtype) if ctx.needs_input_grad[1] else None
        return dx_RI, dw_OI, None, None, None, None


class TernaryLinear(nn.Module):
    """(..., d_in) -> (..., d_out), no bias; d_in a multiple of 128. Trains the float32 master `weight` (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int, *, init_std: float | None = None) -> None:
        super().__init__()
        if d_in % GROUP:
            raise ValueError(f"ternary weights share a scale by groups of {GROUP}, which must divide d_in, got {d_in}")
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        nn.init.normal_(self.weight, std=1 / math.sqrt(d_in) if init_std is None else init_std)
        self._seen: tuple[Tensor, ...] | None = None

    def stored_weight(self) -> Tensor:
        """The weight that the forward pass stands for, t · s, (d_out, d_in), without gradient."""
        return ternarise(self.weight).dense()

    def forward(self, x: Tensor) -> Tensor:
        x_RI = x.reshape(-1, x.shape[-1]).float()
        codes, trits = encode(x_RI), ternarise(self.weight)
        y: Tensor = _TernaryProduct.apply(x_RI, self.weight, *codes, *trits)  # type: ignore[no-untyped-call]
        # Copies of a few rows: a view would keep the whole activation alive.
        rows = (part[:SAMPLED].detach().clone() for part in (x_RI, codes.codes_RI, y))
        self._seen = (*trits, *rows)
        return y.view(*x.shape[:-1], -1)

    def take_sample(self) -> Sample | None:
        """Of the last forward, once: the weight as it is now, and what the forward made of it and of its first rows.

        None when there was no forward since the last call: what a caller replaced cannot pass as having been looked at.
        """
        if self._seen is None:
            return None
        seen, self._seen = self._seen, None
        return Sample(self.weight.detach(), *seen)

    def by_definition(self, x: Tensor) -> Tensor:
        """The same, straightforwardly: x̂ and Ŵ as float32 numbers with straight-through gradients, one float product."""
        used = self.weight + (self.stored_weight() - self.weight).detach()
        rounded = x + (encode(x.reshape(-1, x.shape[-1])).dense().view_as(x) - x).detach()
        return F.linear(rounded, used)
