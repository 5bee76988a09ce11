"""The checks of a watched loop, in the order in which they look: first those whose numbers others read."""

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.accumulation import Accumulation
from karat.invariants.runtime.watching.checks.budget import StepBudget
from karat.invariants.runtime.watching.checks.capture import Capture
from karat.invariants.runtime.watching.checks.clipping import Clipping
from karat.invariants.runtime.watching.checks.decay import Decay
from karat.invariants.runtime.watching.checks.freshness import Freshness
from karat.invariants.runtime.watching.checks.gradients import Gradients
from karat.invariants.runtime.watching.checks.loss_scale import LossScale
from karat.invariants.runtime.watching.checks.rates import Rates
from karat.invariants.runtime.watching.checks.schedule import FollowsSchedule
from karat.invariants.runtime.watching.checks.scheduler_steps import SchedulerSteps
from karat.invariants.runtime.watching.checks.split import Split

ORDER: tuple[type[Check], ...] = (
    Capture,
    Gradients,
    Rates,
    Freshness,
    StepBudget,
    FollowsSchedule,
    Decay,
    SchedulerSteps,
    Accumulation,
    Clipping,
    LossScale,
    Split,
)


def every_check() -> list[Check]:
    """One of each, for one loop."""
    return [check() for check in ORDER]
