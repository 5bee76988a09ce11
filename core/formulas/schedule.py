"""Learning-rate and decay schedules, as functions of the step alone: pure, clamped past their end, resumable.

Steps are integers counted from 0: `wsd(step, …)` is the rate used by optimizer step number `step`. Every schedule
ends with a comparison clamp, because over the reals `floor + (peak - floor) * (1 - t) <= peak` is a theorem and in
float64 it is not: the last operation is what makes the bound true of the number that the optimizer gets.

Source: warmup-stable-decay, Hu et al. 2024 (MiniCPM), arXiv 2404.06395; cosine, Loshchilov and Hutter 2016.
"""

from __future__ import annotations

from karat.core.ops import FLOAT, Number, Ops


def clamp(x: Number, low: Number, high: Number) -> Number:
    """x held to [low, high], by comparisons alone; for low <= high the result is in the interval for every x.

    A NaN gives low: a guard must look at x itself, a clamp does not report.
    """
    if x >= high:
        return high
    if x > low:
        return x
    return low


def linear_decay(step: Number, start: Number, end: Number, peak: Number, floor: Number) -> Number:
    """From peak at `start` to floor at `end` in a straight line; floor for ever after. For step >= start."""
    if step >= end:
        return floor
    return clamp(floor + (peak - floor) * (1 - (step - start) / (end - start)), floor, peak)


def cosine_decay(step: Number, start: Number, end: Number, peak: Number, floor: Number, ops: Ops = FLOAT) -> Number:
    """From peak at `start` to floor at `end` along half a cosine; floor for ever after. For step >= start."""
    if step >= end:
        return floor
    part = (step - start) / (end - start)
    return clamp(floor + (peak - floor) * (1 + ops.cospi(part)) / 2, floor, peak)


def warmup_ramp(step: Number, warmup: Number, peak: Number) -> Number:
    """peak · (step + 1) / warmup for step < warmup: the first step already moves, step warmup - 1 is at peak."""
    return clamp(peak * (step + 1) / warmup, 0, peak)


def wsd(step: Number, warmup: Number, stable_end: Number, total: Number, peak: Number, floor: Number) -> Number:
    """Warmup-stable-decay: ramp for `warmup` steps, peak until `stable_end`, straight to floor at `total`.

    Needs 0 <= warmup <= stable_end <= total and 0 <= floor <= peak. Unit: that of peak. Past total: floor.
    """
    if step < warmup:
        return warmup_ramp(step, warmup, peak)
    if step < stable_end:
        return peak
    return linear_decay(step, stable_end, total, peak, floor)


def cosine(step: Number, warmup: Number, total: Number, peak: Number, floor: Number, ops: Ops = FLOAT) -> Number:
    """Ramp for `warmup` steps, then half a cosine from peak to floor at `total`. Past total: floor.

    Needs 0 <= warmup <= total and 0 <= floor <= peak. Unit: that of peak.
    """
    if step < warmup:
        return warmup_ramp(step, warmup, peak)
    return cosine_decay(step, warmup, total, peak, floor, ops)
