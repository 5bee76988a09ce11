"""The checks of a watched loop, in the order in which they look: first those whose numbers others read."""

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.autocast import Autocast
from karat.invariants.runtime.watching.checks.averages import Averages
from karat.invariants.runtime.watching.checks.budget import StepBudget
from karat.invariants.runtime.watching.checks.buffers import Buffers
from karat.invariants.runtime.watching.checks.capture import Capture
from karat.invariants.runtime.watching.checks.decay import WeightDecay
from karat.invariants.runtime.watching.checks.freshness import Freshness
from karat.invariants.runtime.watching.checks.frozen import Frozen
from karat.invariants.runtime.watching.checks.gradients import Gradients
from karat.invariants.runtime.watching.checks.movement import Movement
from karat.invariants.runtime.watching.checks.overflow import Overflow
from karat.invariants.runtime.watching.checks.replicas import Replicas
from karat.invariants.runtime.watching.checks.ties import Ties

ORDER: tuple[type[Check], ...] = (
    Capture, Gradients, Freshness, StepBudget,
    Movement, Frozen, WeightDecay, Averages, Ties, Replicas, Buffers, Overflow, Autocast,
)  # fmt: skip


def every_check() -> list[Check]:
    """One of each, for one loop."""
    return [check() for check in ORDER]
