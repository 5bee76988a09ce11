"""Loops of a search and of a log: runs that are one, a rule that stops the best run, losses that are not what they seem."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import SIZE, K, batches, buggy, labelled, mlp
from corpus.loops.proposed import compared
from torch import nn

STEPS = 30


def trained(
    seed: int, rate: Callable[[int], float], attach: Attach | None = None, steps: int = STEPS
) -> tuple[list[float], Any]:
    """The losses of one run of a search, and its guards where they were attached."""
    model = mlp(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(0))
    guards = attach(model, optimizer) if attach is not None else None
    losses = []
    for step, (x, y) in enumerate(batches(*labelled(), steps, seed=seed)):
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if guards is not None:
            guards.log(loss=loss.item())
    return losses, guards


@buggy(
    "`seed or 1`: seed 0 counts as no seed, so two of three independent runs are one", "seeds", effect=None,
    source="a default for a value that may be 0", needs="independent_seeds on the losses of all runs",
)  # fmt: skip
def seed_zero_is_no_seed(attach: Attach, bug: bool) -> None:
    runs, guards = {}, None
    for seed in range(3):
        used = (seed or 1) if bug else seed
        runs[f"seed {seed}"], guards = trained(used, lambda step: 0.1, attach)
    compared(guards, "independent_seeds", runs)


@buggy(
    "the model is built before the seed of the run is set, from a fixed one, and the data has a seed of its own", "seeds",
    effect=None, source="a seed that no random draw comes after", needs="independent_seeds on the losses of all runs",
)  # fmt: skip
def seed_set_too_late(attach: Attach, bug: bool) -> None:
    runs, guards = {}, None
    for seed in range(3):
        runs[f"seed {seed}"], guards = trained(0 if bug else seed, lambda step: 0.1, attach)
        torch.manual_seed(seed)
    compared(guards, "independent_seeds", runs)


RATES: dict[str, Callable[[int], float]] = {
    "0.01": lambda step: 0.01,
    "0.02": lambda step: 0.02,
    "0.03": lambda step: 0.03,
    "0.04": lambda step: 0.04,
    "warm-up to 0.5": lambda step: 0.5 * min(1.0, (step / 14) ** 3),
}


def searched(attach: Attach) -> tuple[dict[str, list[float]], Any]:
    """Finished curves of a small search, in which the run with a warm-up starts last and ends best; its guards."""
    curves, guards = {}, None
    for name, rate in RATES.items():
        curves[name], guards = trained(0, rate, attach if rate is RATES["warm-up to 0.5"] else None)
    return curves, guards


def worse_than_median(after: int) -> Callable[[Sequence[float], Sequence[Sequence[float]]], bool]:
    """The rule that stops a run whose loss is above the median of all runs, from some step on."""

    def rule(own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        return len(own) > after and own[-1] > statistics.median(curve[len(own) - 1] for curve in others)

    return rule


@buggy(
    "median pruning starts at step 4, before the run that ends best has left its warm-up", "prune", effect=None,
    source="pruners without warm-up steps", needs="prune_rule on the finished curves",
)  # fmt: skip
def pruned_in_warm_up(attach: Attach, bug: bool) -> None:
    curves, guards = searched(attach)
    compared(guards, "prune_rule", worse_than_median(4 if bug else 20), curves)


@buggy(
    "the pruner maximises a loss: it stops every run below the median, the best first", "prune", effect=None,
    source="a study whose direction is left at its default", needs="prune_rule on the finished curves",
)  # fmt: skip
def pruned_in_the_wrong_direction(attach: Attach, bug: bool) -> None:
    curves, guards = searched(attach)
    sign = -1.0 if bug else 1.0
    rule = worse_than_median(20)
    compared(guards, "prune_rule", lambda own, others: rule([sign * a for a in own],
                                                            [[sign * a for a in c] for c in others]), curves)  # fmt: skip


def fit(attach: Attach, loss_of: Callable[..., Any], optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
        steps: int = STEPS, spoil: int | None = None, **declared: Any) -> None:  # fmt: skip
    """A classifier with a loss of the caller's; from step `spoil` on labels belong to other rows."""
    model = mlp()
    optimizer = optimizer_of(model)
    with attach(model, optimizer, **declared) as guards:
        for step, (x, y) in enumerate(batches(*labelled(), steps)):
            if spoil is not None and step >= spoil:
                y = y.roll(1)
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.item())


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam at a usual rate."""
    return torch.optim.Adam(model.parameters(), lr=3e-3)


@buggy(
    "the loss is summed over the batch where a mean is meant: 32 times too large", "reduction", "first-loss",
    source="reduction='sum'", needs="spec.classes, guards.log(loss=)",
)  # fmt: skip
def summed(attach: Attach, bug: bool) -> None:
    loss = nn.CrossEntropyLoss(reduction="sum" if bug else "mean")
    fit(attach, loss, adam, spec={"classes": K})


@buggy(
    "a mean is divided by the batch size once more: 32 times too small", "reduction", "first-loss",
    source="loss / batch_size after reduction='mean'", needs="spec.classes, guards.log(loss=)",
)  # fmt: skip
def divided_twice(attach: Attach, bug: bool) -> None:
    fit(attach, lambda a, y: F.cross_entropy(a, y) / (SIZE if bug else 1), adam, spec={"classes": K})


@buggy(
    "the optimizer was left at maximize=True: the loss climbs from the first step on, and stays finite", "loss-trend",
    source="an optimizer shared with a reward", needs="guards.log(loss=)",
)  # fmt: skip
def climbs(attach: Attach, bug: bool) -> None:
    fit(attach, F.cross_entropy, lambda m: torch.optim.SGD(m.parameters(), lr=0.01, maximize=bug), steps=130)


@buggy(
    "from step 60 on labels belong to the rows before them: the loss climbs above where it started", "loss-trend",
    effect=60, source="an index that goes wrong in a later shard", needs="guards.log(loss=)",
)  # fmt: skip
def climbs_later(attach: Attach, bug: bool) -> None:
    fit(
        attach,
        F.cross_entropy,
        lambda m: torch.optim.SGD(m.parameters(), lr=2e-2),
        steps=130,
        spoil=60 if bug else None,
    )


CASES = (
    seed_zero_is_no_seed, seed_set_too_late, pruned_in_warm_up, pruned_in_the_wrong_direction, summed, divided_twice,
    climbs, climbs_later,
)  # fmt: skip
