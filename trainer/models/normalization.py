"""LayerNorm or RMSNorm with a gain and no bias: the norm before every sublayer and before the head."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5


class _Unit(torch.autograd.Function):
    """x / sqrt(mean x² + epsilon) over the last axis: in fewer passes over memory than F.rms_norm on a CPU.

    1024 rows of 256, forward and backward with a gain: 0.34 ms against 0.60; LayerNorm, which torch fuses, 0.18 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = (torch.linalg.vecdot(x, x).unsqueeze(-1) / x.shape[-1] + epsilon).rsqrt()
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        (dy,) = gradients
        along = torch.linalg.vecdot(dy, y).unsqueeze(-1) / -y.shape[-1]
        dx: Tensor = torch.addcmul(dy, y, along).mul_(scale)
        return dx, None


def unit_rms(x: Tensor, epsilon: float = EPSILON) -> Tensor:
    """x over its root mean square, which the last axis is (..., d) -> (..., d). Zhang and Sennrich 2019, arXiv 1910.07467."""
    y: Tensor = _Unit.apply(x, epsilon)  # type: ignore[no-untyped-call]
    return y


class Norm(nn.Module):
    """gain · (x - mean) / sqrt(variance + 1e-5), or gain · x / sqrt(mean x² + 1e-5), over the last axis, (..., d) -> (..., d)."""

    def __init__(self, d_model: int, gain: float = 1.0, kind: Literal["layernorm", "rmsnorm"] = "layernorm") -> None:
        super().__init__()
        self.kind = kind
        self.gain = nn.Parameter(torch.full((d_model,), gain))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return unit_rms(x) * self.gain
        return F.layer_norm(x, self.gain.shape, self.gain, None, EPSILON)
