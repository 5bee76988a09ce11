"""The checks of a watched loop, in the order in which they look: first those whose numbers others read."""

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.checks.accumulation import Accumulation
from karat.invariants.runtime.watching.checks.added import Added
from karat.invariants.runtime.watching.checks.alike import Alike
from karat.invariants.runtime.watching.checks.attended import Attended
from karat.invariants.runtime.watching.checks.autocast import Autocast
from karat.invariants.runtime.watching.checks.averages import Averages
from karat.invariants.runtime.watching.checks.budget import StepBudget
from karat.invariants.runtime.watching.checks.buffers import Buffers
from karat.invariants.runtime.watching.checks.capture import Capture
from karat.invariants.runtime.watching.checks.chain_rule import ChainRule
from karat.invariants.runtime.watching.checks.changes import Changes
from karat.invariants.runtime.watching.checks.checkpoints import Checkpoints
from karat.invariants.runtime.watching.checks.clipped import Clipped
from karat.invariants.runtime.watching.checks.clipping import Clipping
from karat.invariants.runtime.watching.checks.collapse import Collapse
from karat.invariants.runtime.watching.checks.crossed import Crossed
from karat.invariants.runtime.watching.checks.crossing import Crossing
from karat.invariants.runtime.watching.checks.decay import Decay
from karat.invariants.runtime.watching.checks.doubled import Doubled
from karat.invariants.runtime.watching.checks.downstream import Downstream
from karat.invariants.runtime.watching.checks.drawn import Drawn
from karat.invariants.runtime.watching.checks.finite import Finite
from karat.invariants.runtime.watching.checks.freshness import Freshness
from karat.invariants.runtime.watching.checks.frozen import Frozen
from karat.invariants.runtime.watching.checks.gradients import Gradients
from karat.invariants.runtime.watching.checks.holdings import Holdings
from karat.invariants.runtime.watching.checks.joined import Joined
from karat.invariants.runtime.watching.checks.labels import Labels
from karat.invariants.runtime.watching.checks.late_clip import LateClip
from karat.invariants.runtime.watching.checks.later_data import LaterData
from karat.invariants.runtime.watching.checks.logged import LoggedLosses
from karat.invariants.runtime.watching.checks.loss_graph import LossGraph
from karat.invariants.runtime.watching.checks.loss_scale import LossScale
from karat.invariants.runtime.watching.checks.loss_shapes import LossShapes
from karat.invariants.runtime.watching.checks.losses import Losses
from karat.invariants.runtime.watching.checks.misspelt import Misspelt
from karat.invariants.runtime.watching.checks.mode import Mode
from karat.invariants.runtime.watching.checks.moments import Moments
from karat.invariants.runtime.watching.checks.movement import Movement
from karat.invariants.runtime.watching.checks.never_better import NeverBetter
from karat.invariants.runtime.watching.checks.origin import Origin
from karat.invariants.runtime.watching.checks.overflow import Overflow
from karat.invariants.runtime.watching.checks.piled import Piled
from karat.invariants.runtime.watching.checks.plateau import Plateau
from karat.invariants.runtime.watching.checks.probes import Probes
from karat.invariants.runtime.watching.checks.rates import Rates
from karat.invariants.runtime.watching.checks.reach import Reach
from karat.invariants.runtime.watching.checks.reinitialised import Reinitialised
from karat.invariants.runtime.watching.checks.repeats import Repeats
from karat.invariants.runtime.watching.checks.replaced import Replaced
from karat.invariants.runtime.watching.checks.replicas import Replicas
from karat.invariants.runtime.watching.checks.reseeded import Reseeded
from karat.invariants.runtime.watching.checks.resumed import Resumed
from karat.invariants.runtime.watching.checks.rewritten import Rewritten
from karat.invariants.runtime.watching.checks.rounded import Rounded
from karat.invariants.runtime.watching.checks.schedule import FollowsSchedule
from karat.invariants.runtime.watching.checks.scheduler_steps import SchedulerSteps
from karat.invariants.runtime.watching.checks.severed import Severed
from karat.invariants.runtime.watching.checks.shared import Shared
from karat.invariants.runtime.watching.checks.shrinking import Shrinking
from karat.invariants.runtime.watching.checks.skipped import Skipped
from karat.invariants.runtime.watching.checks.split import Split
from karat.invariants.runtime.watching.checks.swapped import Swapped
from karat.invariants.runtime.watching.checks.terms import LossTerms
from karat.invariants.runtime.watching.checks.ties import Ties
from karat.invariants.runtime.watching.checks.uneven import Uneven
from karat.invariants.runtime.watching.checks.unstepped import Unstepped
from karat.invariants.runtime.watching.checks.weight_decay import WeightDecay
from karat.invariants.runtime.watching.checks.worse_than_untrained import WorseThanUntrained

ORDER: tuple[type[Check], ...] = (
    Capture, Changes, Holdings, Gradients, Rates, Finite, Freshness, Reach, LossTerms, StepBudget, FollowsSchedule, Decay,
    SchedulerSteps, Accumulation, Clipping, LossScale, Movement, Unstepped, Frozen, WeightDecay, Averages, Ties, Replicas,
    Buffers, Overflow, Autocast, Mode, Losses, Collapse, Labels, LaterData, Probes, Split, Repeats, Origin, LoggedLosses,
    Checkpoints, Moments, Crossing, Clipped, Added, Reseeded, Rounded, Rewritten, Resumed, Alike, LateClip, Plateau,
    Replaced, Shared, LossGraph, Downstream, Misspelt, Skipped, Swapped, Severed,
    Attended, Crossed, Doubled, Joined, LossShapes, NeverBetter, Piled, Shrinking, Uneven, Reinitialised,
    ChainRule, WorseThanUntrained, Drawn,
)  # fmt: skip


def every_check() -> list[Check]:
    """One of each, for one loop."""
    return [check() for check in ORDER]
