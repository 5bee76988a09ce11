"""What a sample of a ternary layer's forward says, for INV-12: six numbers, still on the device.

Steps and scales are made anew from input and weight, by other functions and in float64, so that a fault in the layer's own
cannot pass; its codes and trits are taken as they are and held against the numbers that they stand for, because near a
middle two sound roundings may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from karat.core.formulas.ternary import LEAST, LEVELS

MEASURED = ("trit", "code", "excess", "deviation", "scale", "live")
"""Of the first four the largest of all layers is the worst, of the other two the least."""
TINY = 1e-300
"""Keeps an output that must be zero from being divided by zero."""


@torch.no_grad()
def measured(
    weight_OI: Tensor, trits_OGK: Tensor, scales_OG: Tensor, x_RI: Tensor, codes_RI: Tensor, y_RO: Tensor
) -> Tensor:
    """MEASURED of one layer, shape (6,) float32; NaN where an input is."""
    t_OGK, grouped_OGK = trits_OGK.float(), weight_OI.view_as(trits_OGK)
    size_OGK = t_OGK.abs()
    x, q = x_RI.double(), codes_RI.double()
    step_R1 = x.abs().amax(-1, keepdim=True).clamp_min(LEAST) / LEVELS
    scale_OG = grouped_OGK.abs().mean(-1, dtype=torch.float64).clamp_min(LEAST)
    q_RGK = codes_RI.float().view(len(codes_RI), *trits_OGK.shape[1:])
    defined = scaled(q_RGK, t_OGK, scale_OG) * step_R1
    sizes = scaled(q_RGK.abs(), size_OGK, scale_OG) * step_R1
    beyond_half = ((x - q * step_R1).abs() / step_R1 - 0.5).amax()
    parts = (
        size_OGK.amax(),
        q.abs().amax(),
        torch.maximum(beyond_half, beyond_nearest(grouped_OGK, t_OGK, scale_OG.float()[..., None])),
        ((y_RO - defined).abs() / sizes.clamp_min(TINY)).amax(),
        scales_OG.amin(),
        size_OGK.clamp_(max=1).mean(),  # a tenth of the time of count_nonzero
    )
    return torch.stack([part.to(torch.float32) for part in parts])


def scaled(q_RGK: Tensor, t_OGK: Tensor, scale_OG: Tensor) -> Tensor:
    """Each group's integers multiplied in float32, where INV-12 has them exact, then scaled and added in float64: (R, O)."""
    sums_GRO = torch.bmm(q_RGK.transpose(0, 1), t_OGK.permute(1, 2, 0))
    scaled_RO: Tensor = (sums_GRO * scale_OG.t()[:, None]).sum(0)
    return scaled_RO


def beyond_nearest(weight_OGK: Tensor, t_OGK: Tensor, scale_OG1: Tensor) -> Tensor:
    """How much further than the nearest of -s, 0, s the weights' own choice is, in scales: the largest, shape ()."""
    size = weight_OGK.abs()
    taken = (t_OGK * scale_OG1).sub_(weight_OGK).abs_()
    nearest = torch.minimum(size, (size - scale_OG1).abs_())
    furthest: Tensor = (taken.sub_(nearest).amax(-1, keepdim=True) / scale_OG1).amax()
    return furthest


def worst(layers: Sequence[Tensor]) -> Tensor:
    """MEASURED of the worst layer in each, shape (6,); NaN where one is."""
    stacked = torch.stack(list(layers))
    return torch.cat([stacked[:, :4].amax(0), stacked[:, 4:].amin(0)])
