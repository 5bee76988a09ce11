"""How two gradients of one tensor are compared, and what is said of it: held, failed, or not tested."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from karat.trainer.reference.arrays import Array

OWN, TORCH, DIFFERENCES = "trainer", "torch", "differences"
"""The opinions that the reference is compared with: the trainer's own module, plain torch functions, central differences."""
OPINIONS = (OWN, TORCH, DIFFERENCES)
REFERENCE = "reference"
"""Named where the reference itself raises."""

LIMITS = {OWN: 1e-9, TORCH: 1e-9, DIFFERENCES: 1e-6}
"""The largest relative error with each opinion; float64 sums in another order differ by 1e-16 to 1e-13,
differences by 1e-10 to 1e-7."""
NOTHING = {OWN: 1e-13, TORCH: 1e-13, DIFFERENCES: 1e-7}
"""A gradient is nothing when its norm is at most this part of the largest of its case: what is left of 0 by rounding."""
BACKWARD = "the reference's backward is not that of its forward"
OUTPUT = "output"
"""The name under which a part's result is compared, before its gradients."""


class Result(StrEnum):
    """Of one comparison, one tensor or one part."""

    HELD = "held"
    FAILED = "FAILED"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Comparison:
    """The reference's tensor against one opinion's; `reason` where there is nothing to compare."""

    opinion: str
    result: Result
    error: float | None = None
    limit: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One tensor of one part: the norm of its gradient in the reference, and every comparison."""

    tensor: str
    norm: float
    comparisons: tuple[Comparison, ...]

    @property
    def result(self) -> Result:
        """FAILED if any comparison did; not tested if any could not be made, or none was; else held."""
        results = [comparison.result for comparison in self.comparisons]
        if Result.FAILED in results:
            return Result.FAILED
        return Result.NOT_TESTED if Result.NOT_TESTED in results or not results else Result.HELD

    def suspect(self, forward_agrees: bool) -> str:
        """Who differs, by the votes; `forward_agrees` says whether the part's output held.

        Differences are of the reference's own forward: they say whether its backward belongs to it.
        """
        if any(c.opinion == REFERENCE for c in self.comparisons):
            return "the reference raises"
        failed = {c.opinion for c in self.comparisons if c.result is Result.FAILED}
        held = {c.opinion for c in self.comparisons if c.result is Result.HELD}
        if failed == {OWN} and TORCH in held:
            return "the trainer's module stands alone"
        if failed == {TORCH} and OWN in held:
            return "plain torch stands alone"
        if self.tensor == OUTPUT or not forward_agrees:
            return "the forward passes differ"
        if DIFFERENCES in failed:
            return BACKWARD if failed & {OWN, TORCH} or not held else "the differences stand alone"
        return "autograd does not give the gradient of the forward pass that all agree on"


def relative_error(ours: Array, theirs: Array) -> float:
    """|ours - theirs| / max(|ours|, |theirs|), Euclidean: 0 equal, 1 where one is zero, NaN where a number is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return math.nan
    largest = max(norm(ours), norm(theirs))
    return norm(ours - theirs) / largest if largest else 0.0


def norm(x: Array) -> float:
    """The Euclidean norm over all axes; no overflow for finite numbers that a double can hold the norm of."""
    largest = float(np.abs(x).max(initial=0.0))
    return largest * float(np.linalg.norm(x / largest)) if 0 < largest < math.inf else largest


def compared(opinion: str, ours: Array, theirs: Array, scale: float, limit: float) -> Comparison:
    """The verdict on one tensor; `scale` is the largest norm among the case's gradients.

    Two gradients that are both nothing show nothing, equal as they are: not tested. NaN and infinity fail.
    """
    if ours.shape != theirs.shape:
        return Comparison(
            opinion, Result.FAILED, None, limit, f"its shape is {theirs.shape}, the reference's {ours.shape}"
        )
    error = relative_error(ours, theirs)
    if math.isnan(error):
        return Comparison(opinion, Result.FAILED, error, limit, "a number is not finite")
    if max(norm(ours), norm(theirs)) <= NOTHING[opinion] * scale:
        return Comparison(opinion, Result.NOT_TESTED, None, limit, "the gradient is zero on both sides")
    return Comparison(opinion, Result.HELD if error <= limit else Result.FAILED, error, limit)
