"""The checks of a watched loop, in the order in which they look: first those whose numbers others read."""

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.budget import StepBudget
from karat.invariants.runtime.watching.checks.capture import Capture
from karat.invariants.runtime.watching.checks.checkpoints import Checkpoints
from karat.invariants.runtime.watching.checks.freshness import Freshness
from karat.invariants.runtime.watching.checks.gradients import Gradients
from karat.invariants.runtime.watching.checks.losses import Losses
from karat.invariants.runtime.watching.checks.origin import Origin
from karat.invariants.runtime.watching.checks.repeats import Repeats
from karat.invariants.runtime.watching.checks.split import Split

ORDER: tuple[type[Check], ...] = (
    Capture,
    Gradients,
    Freshness,
    StepBudget,
    Split,
    Repeats,
    Origin,
    Losses,
    Checkpoints,
)


def every_check() -> list[Check]:
    """One of each, for one loop."""
    return [check() for check in ORDER]
