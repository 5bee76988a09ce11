"""The exponential moving average of weights: its decay, a cosine from a start to an end, and one update of it.

The decay of step `step` of `total` is end - (end - start)(1 + cos(pi step/total))/2: `start` at step 0, `end` from step
`total` on, never falling. An update moves the average towards the weight by the part 1 - decay of their distance, so
over the reals it stays between the two; in floating point products and sums are rounded, which is why both functions
end in comparisons. Source: Polyak averaging; the cosine of the decay as in BYOL, Grill et al. 2020, arXiv 2006.07733.
"""

from __future__ import annotations

from karat.core.formulas.schedule import clamp
from karat.core.ops import FLOAT, Number, Ops


def blend(cosine: Number, start: Number, end: Number) -> Number:
    """end - (end - start)(1 + cosine)/2, held to [start, end]: start where the cosine is 1, end where it is -1."""
    return clamp(end - (end - start) * (1 + cosine) / 2, start, end)


def decay_at(step: Number, total: Number, start: Number, end: Number, ops: Ops = FLOAT) -> Number:
    """The decay of the update after step `step`, counted from 0; `end` from `total` >= 1 on. For step >= 0."""
    return blend(ops.cospi(ops.minimum(step, total) / total), start, end)


def averaged(average: Number, weight: Number, decay: Number, ops: Ops = FLOAT) -> Number:
    """average + (1 - decay)(weight - average), held between the two; NaN where that is NaN. Numbers or tensors."""
    moved = average + (1 - decay) * (weight - average)
    return ops.maximum(ops.minimum(moved, ops.maximum(average, weight)), ops.minimum(average, weight))
