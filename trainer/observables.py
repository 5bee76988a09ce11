"""What the trainer offers to guards that are not its own: quantities by name, each read only when a guard asks for it.

An invariant of another package is on duty when everything it observes is offered here, by name, with the same unit
and as one number, at a moment that it names; or when its package brings a probe. It runs with its declared parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from karat.core.errors import KaratError
from karat.core.invariant import Invariant
from karat.core.observation import Phase
from karat.invariants.plugins import PROBES, Plugin
from karat.invariants.runtime.by_name import reading_by_name
from karat.invariants.runtime.probes import Reading
from karat.trainer.objectives.training import Losses

BEFORE_STEP, FINISH = Phase.BEFORE_STEP, Phase.FINISH
MOMENTS = (BEFORE_STEP, FINISH)


@dataclass(frozen=True)
class View:
    """What a probe may look at, at one moment; it changes nothing of it.

    model: everything that is trained, as one module. losses: of the batch of this step. step: steps taken so far.
    gradient_norm: before clipping; None at the end, where there is no gradient. bytes_per_token: the training side's mean.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    losses: Losses
    step: int
    gradient_norm: float | None
    bytes_per_token: float = 1.0


@dataclass(frozen=True)
class Observable:
    """One offered quantity. read(view) -> a number, or a tensor of one number that is not waited for; the observed value
    is that divided by `divisor`, in float64."""

    name: str
    unit: str
    meaning: str
    read: Callable[[View], float | torch.Tensor]
    divisor: float = 1.0
    moments: tuple[Phase, ...] = MOMENTS


def _largest_rate(view: View) -> float:
    rates = [float(group["lr"]) for group in view.optimizer.param_groups]
    odd = [rate for rate in rates if rate != rate]
    return odd[0] if odd else max(rates)


def _gradient_norm(view: View) -> float:
    return math.nan if view.gradient_norm is None else view.gradient_norm


def _weight_norm(view: View) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.detach() for p in view.model.parameters()])


def _weight_absmax(view: View) -> torch.Tensor:
    ends = torch.stack([end for p in view.model.parameters() if p.numel() for end in torch.aminmax(p.detach())])
    return ends.abs().max()  # NaN stays NaN


OFFERED: Mapping[str, Observable] = {
    o.name: o
    for o in (
        Observable("step", "steps", "the steps taken so far", lambda view: float(view.step)),
        Observable("lr", "", "the learning rate in force, the largest of all parameter groups", _largest_rate),
        Observable("loss", "bits per byte", "the next-token loss of this step's training batch",
                   lambda view: view.losses.cross_entropy.detach().double() / view.bytes_per_token, math.log(2)),
        Observable("total_loss", "nats", "what the step minimises: next-token loss and auxiliary losses, per token",
                   lambda view: view.losses.total),
        Observable("gradient_norm", "", "the 2-norm of the whole gradient, before clipping", _gradient_norm,
                   moments=(BEFORE_STEP,)),
        Observable("weight_norm", "", "the 2-norm of all trained parameters", _weight_norm),
        Observable("weight_absmax", "", "the largest magnitude among all trained parameters", _weight_absmax),
    )
}  # fmt: skip


def moments(plugin: Plugin) -> tuple[Phase, ...]:
    """The moments at which a run can look for a plug-in: none when there is none at which all it observes can be read."""
    asked = [moment for moment in MOMENTS if moment in plugin.invariant.phases]
    return tuple(moment for moment in asked if plugin.probe is not None or not missing(plugin.invariant, moment))


def missing(invariant: Invariant, moment: Phase) -> list[str]:
    """What an invariant observes and the trainer does not offer at a moment, each with the reason in brackets."""
    lacks = []
    for quantity in invariant.quantities:
        offer = OFFERED.get(quantity.name)
        if offer is None:
            lacks.append(quantity.name)
        elif quantity.shape:
            lacks.append(f"{quantity.name} (observed with shape {quantity.shape}; offered as one number)")
        elif quantity.unit != offer.unit:
            units = (unit or "no unit" for unit in (quantity.unit, offer.unit))
            lacks.append("{} (observed in {}, offered in {})".format(quantity.name, *units))
        elif moment not in offer.moments:
            lacks.append(f"{quantity.name} (not offered {moment})")
    return lacks


def why_not(plugin: Plugin) -> str:
    """Why a plug-in is not on duty, as the report says it; empty when it is."""
    if moments(plugin):
        return ""
    asked = [moment for moment in MOMENTS if moment in plugin.invariant.phases]
    if not asked:
        return f"looks {' and '.join(plugin.invariant.phases)}; the trainer calls on it {' and '.join(MOMENTS)} only"
    return "the trainer does not offer " + ", ".join(missing(plugin.invariant, asked[0]))


def readings(plugins: Iterable[Plugin], moment: Phase, view: View) -> list[Reading]:
    """What the plug-ins on duty look at now. A quantity that several of them observe is read once."""
    calling = [plugin for plugin in plugins if moment in moments(plugin)]
    names = {q.name for plugin in calling if plugin.probe is None for q in plugin.invariant.quantities}
    offered = {name: OFFERED[name].read(view) for name in OFFERED if name in names}
    return [_reading(plugin, offered, view) for plugin in calling]


def _reading(plugin: Plugin, offered: Mapping[str, float | torch.Tensor], view: View) -> Reading:
    names = [q.name for q in plugin.invariant.quantities]
    if plugin.probe is not None:
        return reading_by_name(plugin.invariant.id, f"the probe of {plugin.package}, {PROBES}", _probed(plugin, view))
    own = {name: offered[name] for name in names}
    divisors = {name: OFFERED[name].divisor for name in names}
    return reading_by_name(plugin.invariant.id, f"trainer/observables.py, {', '.join(names)}", own, divisors)


def _probed(plugin: Plugin, view: View) -> Mapping[str, Any]:
    """What a plug-in's probe reads; KaratError when it fails or leaves out what its invariant observes."""
    assert plugin.probe is not None
    try:
        read = dict(plugin.probe(view))
    except Exception as error:  # foreign code
        raise _probe_error(plugin, f"failed: {type(error).__name__}: {error}") from error
    absent = [q.name for q in plugin.invariant.quantities if q.name not in read]
    if absent:
        raise _probe_error(plugin, f"did not give {', '.join(absent)}")
    return read


def _probe_error(plugin: Plugin, what: str) -> KaratError:
    return KaratError(
        f"the probe of {plugin.invariant.id}, of the package {plugin.package}, {what}",
        required="a mapping from the name of every quantity to a number or a tensor",
        next_step=f"mend the package {plugin.package}, or: pip uninstall {plugin.package}",
    )
