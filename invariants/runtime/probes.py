"""Probes: from what a live run holds to what a guard looks at.

A probe does its reductions on the device and returns a Reading: small tensors that have not been waited for, and how
to make the observed values of their numbers. The monitor brings the tensors of all guards over in one transfer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from karat.core.formulas import attention
from karat.core.formulas.entropy import entropy_of_counts_nats
from karat.core.observation import Observation
from karat.invariants import inv01_descent as inv01
from karat.invariants import inv02_asha_threshold as inv02
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv04_nca_entropy_band as inv04
from karat.invariants import inv05_lucas_closure as inv05
from karat.invariants import inv06_ema_decay as inv06
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import inv09_qk_gain as inv09
from karat.invariants import inv11_mhc_doubly_stochastic as inv11
from karat.invariants import inv12_ternary_exact as inv12
from karat.invariants.runtime import ternary_measures
from karat.invariants.runtime.torch_ops import TORCH

Numbers = Mapping[str, list[float]]


@dataclass(frozen=True)
class Reading:
    """What a probe read: tensors still on the device, and `values`, which makes the observation of their numbers."""

    invariant_id: str
    probe: str
    tensors: Mapping[str, torch.Tensor]
    values: Callable[[Numbers], Mapping[str, Any]]
    declared: Any = None
    """The parameters that this reading is judged by, where they are not the guard's own."""


def observe(readings: Sequence[Reading]) -> list[Observation]:
    """The observations of all readings: one concatenation, one transfer to the host, however many there are.

    float32 becomes float64 without rounding, so the guards judge exactly what the run holds.
    """
    parts = [tensor.detach().reshape(-1) for reading in readings for tensor in reading.tensors.values()]
    wide = any(part.dtype == torch.float64 for part in parts)
    numbers: list[float] = []
    if parts:
        dtype = torch.float64 if wide else torch.float32
        numbers = torch.cat([part.to(dtype) for part in parts]).tolist()
    observations, place = [], 0
    for reading in readings:
        own: dict[str, list[float]] = {}
        for name, tensor in reading.tensors.items():
            own[name] = numbers[place : place + tensor.numel()]
            place += tensor.numel()
        observations.append(Observation(reading.invariant_id, reading.values(own), reading.probe))
    return observations


def smoothed_loss(losses: Sequence[float]) -> Reading:
    """INV-1: mean and variance of two adjacent windows of step losses in bits per byte, the earlier half first."""
    observed = inv01.observe(list(losses))
    return Reading("INV-1", "smoothed_loss", {}, lambda _: observed)


def learning_rate(rates: Sequence[tuple[float, inv08.Band]], on_plateau: bool) -> Reading:
    """INV-8: of (rate, band) of each parameter group the one nearest to, or furthest outside, a bound of its own band.

    Distances are compared relative to the band's upper end.
    """
    return _worst_rate("learning_rate", [(rate, on_plateau, band) for rate, band in rates])


def schedule_peak(rates: Sequence[tuple[float, bool, inv08.Band]]) -> Reading:
    """INV-8 before the first step: the worst of (rate, on_plateau, band) over every step of the planned schedules."""
    return _worst_rate("schedule_peak", rates)


def _worst_rate(probe: str, rates: Sequence[tuple[float, bool, inv08.Band]]) -> Reading:
    def relative(item: tuple[float, bool, inv08.Band]) -> float:
        rate, on, band = item
        distance: float = inv08.margin({"lr": rate, "on_plateau": 1.0 if on else 0.0}, band)
        return distance / band.ends[1] if rate - rate == 0 else -math.inf

    lr, on_plateau, band = min(rates, key=relative)
    plateau = 1.0 if on_plateau else 0.0
    return Reading("INV-8", probe, {}, lambda _: {"lr": lr, "on_plateau": plateau}, band)


def gf16_absmax(parameters: Sequence[torch.Tensor], domain: inv03.Domain) -> Reading:
    """INV-3: the largest magnitude in each tensor that goes through GF16; the worst one is observed."""
    ends = torch.stack([end for p in parameters for end in torch.aminmax(p.detach())])  # one pass each; NaN stays NaN

    def values(numbers: Numbers) -> Mapping[str, Any]:
        flat = numbers["ends"]
        sizes = [
            high if high >= -low or high != high else -low for low, high in zip(flat[::2], flat[1::2], strict=True)
        ]
        odd = [a for a in sizes if a - a != 0]
        worst = odd[0] if odd else min(sizes, key=lambda a: inv03.margin({"absmax": a}, domain))
        return {"absmax": worst}

    return Reading("INV-3", "gf16_absmax", {"ends": ends}, values)


def nca_entropy(counts: torch.Tensor) -> Reading:
    """INV-4: the entropy of the histogram of the grid's states; counts has shape (9,) and sums to 81."""

    def values(numbers: Numbers) -> Mapping[str, Any]:
        histogram = [int(c) for c in numbers["counts"]]
        if len(histogram) != inv04.STATES or sum(histogram) != inv04.CELLS or min(histogram) < 0:
            return {"entropy": float("nan")}  # not the histogram of a 9x9 grid: cannot be accepted
        return {"entropy": entropy_of_counts_nats(histogram)}

    return Reading("INV-4", "nca_entropy", {"counts": counts}, values)


def decay_plan(decays: Sequence[float], averaging: inv06.Averaging) -> Reading:
    """INV-6 before the first step: the worst of the planned decays, the first held to the start, the last to the end."""
    low, high = averaging.ends
    observed = [
        {"decay": decay, "scheduled": decay, "previous": previous, "outside": 0.0}
        for previous, decay in zip((low, *decays), decays, strict=False)
    ]
    observed[0]["scheduled"], observed[-1]["scheduled"] = low, high
    worst = min(observed, key=lambda values: inv06.margin(values, averaging))
    return Reading("INV-6", "decay_plan", {}, lambda _: worst)


def weight_average(decay: float, scheduled: float, previous: float, outside: torch.Tensor) -> Reading:
    """INV-6: the decay of the last update, what was declared for it, and how far each average is outside its hull."""

    def values(numbers: Numbers) -> Mapping[str, Any]:
        worst = next((x for x in numbers["outside"] if x - x != 0), max(numbers["outside"]))
        return {"decay": decay, "scheduled": scheduled, "previous": previous, "outside": worst}

    return Reading("INV-6", "weight_average", {"outside": outside}, values)


def mixing_matrices(matrices: torch.Tensor, spread: torch.Tensor) -> Reading:
    """INV-11: the mixing matrices, shape (S, n, n) in the order of depth, and the spread of the streams, shape ()."""
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not len(matrices) or spread.numel() != 1:
        raise ValueError(
            f"mixing matrices must be (S, n, n) with S >= 1 and the spread one number, got {tuple(matrices.shape)} and "
            f"{tuple(spread.shape)}"
        )
    count, n, _ = matrices.shape

    def values(numbers: Numbers) -> Mapping[str, Any]:
        flat = numbers["matrices"]
        nested = [[flat[(s * n + i) * n : (s * n + i + 1) * n] for i in range(n)] for s in range(count)]
        return {"matrices": nested, "spread": numbers["spread"][0]}

    return Reading(inv11.INVARIANT.id, "mixing_matrices", {"matrices": matrices, "spread": spread}, values)


def ternary_layers(samples: Sequence[Sequence[torch.Tensor] | None], *, may_be_zero: bool = False) -> Reading:
    """INV-12: the worst of what the samples of all ternary layers say, see ternary_measures.measured.

    A layer without a sample was not run as it is declared to be: nothing finite is observed, which is a violation.
    may_be_zero: before the first step of a model some of whose matrices start at zero.
    """
    declared = dataclasses.replace(inv12.DEFAULT, live=0.0) if may_be_zero else inv12.DEFAULT
    present = [sample for sample in samples if sample is not None]
    if not present or len(present) < len(samples):
        nothing = dict.fromkeys(ternary_measures.MEASURED, float("nan"))
        return Reading("INV-12", "ternary_layers", {}, lambda _: nothing, declared)
    worst = ternary_measures.worst([ternary_measures.measured(*sample) for sample in present])

    def values(numbers: Numbers) -> Mapping[str, Any]:
        return dict(zip(ternary_measures.MEASURED, numbers["worst"], strict=True))

    return Reading("INV-12", "ternary_layers", {"worst": worst}, values, declared)


def prune_certificate(loss: float, certificate: inv02.Certificate) -> Reading:
    """INV-2: the validation loss at a rung, in bits per byte, and the certificate in force there."""
    observed = {
        "loss": loss,
        "threshold": certificate.threshold,
        "target": certificate.target,
        "gap": certificate.gap,
    }
    return Reading("INV-2", "prune_certificate", {}, lambda _: observed)


def closing_gain(gains: Sequence[float], declared: inv05.Closure | None) -> Reading:
    """INV-5: of the layers' gains in force the one that closes worst, as an exact fraction; the first that is not finite."""
    odd = [gain for gain in gains if gain - gain != 0]
    if odd or declared is None:
        return Reading("INV-5", "closing_gain", {}, lambda _: {"gain": odd[0] if odd else gains[0]})
    worst = min((Fraction(gain) for gain in gains), key=lambda gain: inv05.margin({"gain": gain}, declared))
    return Reading("INV-5", "closing_gain", {}, lambda _: {"gain": worst})


def attention_scores(
    gains: Sequence[float], samples: Sequence[tuple[torch.Tensor, ...] | None], declared: inv09.GoldenGain
) -> Reading:
    """INV-9: the worst gain in force, and what (q, k, v, output) of every layer say; each (H, P, head_dim), P positions.

    A layer without a sample was not run as it is declared to be: nothing finite is observed, which is a violation.
    """
    lowest, highest = declared.ends
    odd = [gain for gain in gains if gain - gain != 0]
    worst = odd[0] if odd else max(gains, key=lambda gain: max(lowest - gain, gain - highest))
    present = [sample for sample in samples if sample is not None]
    if not present or len(present) < len(samples):
        nothing = float("nan")
        return Reading("INV-9", "attention_scores", {},
                       lambda _: {"gain": worst, "deviation": nothing, "spread": nothing})  # fmt: skip
    q, k, v, mixed = (torch.stack(parts) for parts in zip(*present, strict=True))  # (L, H, P, head_dim)
    scale = attention.score_scale(declared.gain, q.shape[-1] ** 0.5)
    scores = attention.score(q[..., :, None, :].unbind(-1), k[..., None, :, :].unbind(-1), scale, TORCH)
    deviation = deviation_of(scores, q, k, v, mixed, scale)
    spread = spread_of(scores)
    return Reading("INV-9", "attention_scores", {"deviation": deviation, "spread": spread},
                   lambda numbers: {"gain": worst, "deviation": numbers["deviation"][0],
                                    "spread": numbers["spread"][0]})  # fmt: skip


def deviation_of(
    scores: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixed: torch.Tensor, scale: float
) -> torch.Tensor:
    """How far `mixed` is from causal softmax attention with these scores; shape (), see GoldenGain."""
    positions = scores.shape[-1]
    future = torch.ones(positions, positions, dtype=torch.bool, device=scores.device).triu(1)
    defined = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    largest = v.abs().amax((-1, -2)).clamp_min(torch.finfo(v.dtype).tiny)
    score_by_norms = scale * q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)
    worst: torch.Tensor = ((mixed - defined).abs().amax((-1, -2)) / (largest * (1 + score_by_norms))).amax()
    return worst


def spread_of(scores: torch.Tensor) -> torch.Tensor:
    """The largest second difference of neighbouring positions' scores, of the head where it is least; 0 for one position."""
    if scores.shape[-1] < 2:
        return scores.new_zeros(())
    near, right, below, across = (
        scores[..., :-1, :-1], scores[..., :-1, 1:], scores[..., 1:, :-1], scores[..., 1:, 1:],
    )  # fmt: skip
    differences: torch.Tensor = attention.interaction(near, right, below, across)
    return differences.abs().amax((-1, -2)).amin()


def rungs_held(rungs: Sequence[int], step: int) -> Reading:
    """INV-10: the steps at which a rung was held (before the first step: is planned) and how many steps are done."""
    observed = {"rungs": list(rungs), "step": Fraction(step)}
    return Reading("INV-10", "rungs_held", {}, lambda _: observed)
