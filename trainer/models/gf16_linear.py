"""A linear map whose weight, and where asked its input, is used as GF16 numbers: float32 master, straight-through gradient.

The forward pass sees the weight after it went through the 16-bit format; the optimizer moves the float32
master, so that updates smaller than a GF16 step add up instead of being lost. The rounding is
karat.core.formulas.gf16, on tensors. Source of the need for a master: the seed's GF16 trainer had none and
lost 0.3 to 0.7 bits per byte to it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.formulas import gf16
from karat.invariants.runtime.torch_ops import TORCH

CHUNK = 262_144
"""Elements rounded at a time, 1 MiB: the intermediates stay in cache (12 ms against 160 ms for 2M)."""
_MAGNITUDE, _SIGN = 0x7FFFFFFF, -0x80000000


def round_to_gf16(values: Tensor) -> Tensor:
    """The nearest GF16 number of every float32 element, ties to even, as float32, same shape; no gradient.

    Beyond the format's range: infinity with the sign kept; NaN stays NaN. TypeError for another dtype.
    """
    if values.dtype != torch.float32:
        raise TypeError(f"GF16 rounding is defined on float32 bits, got {values.dtype}: call .float() first")
    bits = values.detach().reshape(-1).view(torch.int32)
    rounded = torch.empty_like(bits)
    for start in range(0, bits.numel(), CHUNK):
        piece = bits[start : start + CHUNK]
        magnitude = gf16.round_magnitude_bits(piece & _MAGNITUDE, TORCH)
        rounded[start : start + CHUNK] = magnitude | (piece & _SIGN)
    return rounded.view(torch.float32).view(values.shape)


class _StraightThrough(torch.autograd.Function):
    """The value of `rounded`, the gradient of `master`."""

    @staticmethod
    def forward(ctx: Any, master: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def through_gf16(x: Tensor) -> Tensor:
    """Every element as the nearest GF16 number, in float32; the gradient goes straight through."""
    wide = x.float()
    rounded: Tensor = _StraightThrough.apply(wide, round_to_gf16(wide))  # type: ignore[no-untyped-call]
    return rounded


class GF16Linear(nn.Module):
    """x W^T with W in GF16 (`gf16 = True`) or in float32: shapes (..., d_in) -> (..., d_out); no bias.

    activations: x goes through GF16 too; `seen` is then the largest magnitude of its last input, 0-dim, detached.

    The rounded weight is computed once per change of the master, which is found by comparing with the
    master it was made from. (Not by the tensor's version counter: torch 2.13's fused AdamW leaves that
    unchanged.)
    """

    def __init__(
        self, d_in: int, d_out: int, *, gf16: bool, activations: bool = False, init_std: float | None = None
    ) -> None:
        super().__init__()
        self.gf16, self.activations = gf16, activations
        self.seen: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        nn.init.normal_(self.weight, std=1 / math.sqrt(d_in) if init_std is None else init_std)
        self._rounded: Tensor | None = None
        self._rounded_from: Tensor | None = None

    def stored_weight(self) -> Tensor:
        """The weight that the forward pass uses, (d_out, d_in), without gradient: rounded, or the master."""
        master = self.weight.detach()
        if not self.gf16:
            return master
        if self._rounded is None or self._rounded_from is None or not torch.equal(self._rounded_from, master):
            self._rounded_from = master.clone()
            self._rounded = round_to_gf16(master)
        return self._rounded

    def used_weight(self) -> Tensor:
        """As stored_weight, with the gradient going straight to the master."""
        if not self.gf16:
            return self.weight
        used: Tensor = _StraightThrough.apply(self.weight, self.stored_weight())  # type: ignore[no-untyped-call]
        return used

    def forward(self, x: Tensor) -> Tensor:
        if self.activations:
            low, high = torch.aminmax(x.detach())
            self.seen = torch.maximum(-low, high).float()
            x = through_gf16(x)
        return F.linear(x, self.used_weight())
