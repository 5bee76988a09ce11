"""The checks of a watched loop, in the order in which they look: first those whose numbers others read."""

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.budget import StepBudget
from karat.invariants.runtime.watching.checks.capture import Capture
from karat.invariants.runtime.watching.checks.finite import Finite
from karat.invariants.runtime.watching.checks.freshness import Freshness
from karat.invariants.runtime.watching.checks.gradients import Gradients
from karat.invariants.runtime.watching.checks.holdings import Holdings
from karat.invariants.runtime.watching.checks.reach import Reach
from karat.invariants.runtime.watching.checks.terms import LossTerms

ORDER: tuple[type[Check], ...] = (
    Capture, Holdings, Gradients, Finite, Freshness, Reach, LossTerms, StepBudget,
)  # fmt: skip


def every_check() -> list[Check]:
    """One of each, for one loop."""
    return [check() for check in ORDER]
