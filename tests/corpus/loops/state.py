"""Loops that save, load or go on wrongly: what is not saved, not loaded, or not what it is said to be."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, batches, buggy, labelled, mlp
from corpus.loops.proposed import compared
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

HALF, STEPS = 15, 30
RESUME = "guards.checkpoint(state) when it is saved and when it was loaded"


class Session:
    """Model, optimizer and schedule of one process, and how they go on."""

    def __init__(self, seed: int = 0, drop: float = 0.0) -> None:
        self.model = mlp(seed)
        if drop:
            self.model.insert(2, nn.Dropout(drop))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = LambdaLR(self.optimizer, lambda step: (1 + math.cos(math.pi * step / STEPS)) / 2)
        self.losses: list[float] = []

    def advance(self, guards: Any, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """One step to each pair."""
        for x, y in pairs:
            loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(loss.item())
            if guards is not None:
                guards.log(loss=loss.item())

    def state(self, **more: Any) -> dict[str, Any]:
        """All of it, copied as saving would; `step` is how many steps were taken."""
        held = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(), "step": len(self.losses)}  # fmt: skip
        return copy.deepcopy({**held, **more})


def data(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """The batches of a whole run."""
    return list(batches(*labelled(), STEPS, seed=seed))


def interrupted(attach: Attach, leave_out: str = "", forget: str = "") -> None:
    """Trains, saves without `leave_out`, and goes on with new objects, into which `forget` is not loaded."""
    pairs, first = data(), Session()
    with attach(first.model, first.optimizer, scheduler=first.scheduler) as guards:
        first.advance(guards, pairs[:HALF])
        state = first.state()
        state.pop(leave_out, None)
        guards.checkpoint(state)
    second = Session(seed=5)
    for part in ("model", "optimizer", "scheduler"):
        if part in state and part != forget:
            getattr(second, part).load_state_dict(copy.deepcopy(state[part]))
    with attach(second.model, second.optimizer, scheduler=second.scheduler) as guards:
        guards.checkpoint(state)
        second.advance(guards, pairs[HALF:])


@buggy(
    "the optimizer's state is saved but never loaded: Adam starts from nothing", "resume", "checkpoint",
    effect=HALF, source="a resume that loads the model alone", needs=RESUME,
)  # fmt: skip
def optimizer_not_loaded(attach: Attach, bug: bool) -> None:
    interrupted(attach, forget="optimizer" if bug else "")


@buggy(
    "the optimizer's state is not in the checkpoint", "resume", "checkpoint",
    effect=HALF, source="torch.save(model.state_dict()) as the whole checkpoint", needs=RESUME,
)  # fmt: skip
def optimizer_not_saved(attach: Attach, bug: bool) -> None:
    interrupted(attach, leave_out="optimizer" if bug else "")


@buggy(
    "the schedule is not in the checkpoint: after resuming the rate is back at its peak", "resume", "checkpoint", "lr-decay",
    effect=HALF + 1, source="a resume without scheduler.load_state_dict", needs=RESUME,
)  # fmt: skip
def scheduler_not_saved(attach: Attach, bug: bool) -> None:
    interrupted(attach, leave_out="scheduler" if bug else "")


@buggy(
    "load_state_dict(strict=False) with names that all have a prefix: nothing is loaded, nothing is said",
    "checkpoint", "resume", effect=HALF, source="weights saved from a wrapper, `module.` before each name", needs=RESUME,
)  # fmt: skip
def nothing_loaded(attach: Attach, bug: bool) -> None:
    pairs, first = data(), Session()
    with attach(first.model, first.optimizer) as guards:
        first.advance(guards, pairs[:HALF])
        state = first.state()
        state["model"] = {f"module.{name}": value for name, value in state["model"].items()}
        guards.checkpoint(state)
    second = Session(seed=5)
    held = state["model"] if bug else {name.removeprefix("module."): v for name, v in state["model"].items()}
    second.model.load_state_dict(copy.deepcopy(held), strict=False)
    second.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    second.scheduler.load_state_dict(state["scheduler"])
    with attach(second.model, second.optimizer) as guards:
        guards.checkpoint(state)
        second.advance(guards, pairs[HALF:])


def by_step(losses: list[float], start: int = 0) -> dict[int, float]:
    """{step: loss}."""
    return dict(enumerate(losses, start))


@buggy(
    "the state of the random generators is not restored: after resuming dropout draws what it drew at the start", "resume",
    effect=None, source="a resume without torch.set_rng_state", needs="resume_parity on the losses of both runs",
)  # fmt: skip
def generator_not_restored(attach: Attach, bug: bool) -> None:
    pairs = data()
    straight = Session(drop=0.2)
    straight.advance(None, pairs)
    first = Session(drop=0.2)
    first.advance(None, pairs[:HALF])
    state = first.state(rng=torch.get_rng_state())
    second = Session(drop=0.2)
    for part in ("model", "optimizer", "scheduler"):
        getattr(second, part).load_state_dict(copy.deepcopy(state[part]))
    if not bug:
        torch.set_rng_state(state["rng"])
    with attach(second.model, second.optimizer) as guards:
        second.advance(guards, pairs[HALF:])
        compared(guards, "resume_parity", by_step(straight.losses), by_step(second.losses, HALF))


class Annealed(nn.Module):
    """A classifier whose temperature falls with a count of forward passes, kept as a number or as a buffer."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, K))
        self.plain, self.count = plain, 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        count = self.count if self.plain else int(self.seen)
        self.count += 1
        self.seen += 0 if self.plain else 1
        return self.net(x) / max(0.2, 1 - count / STEPS)  # type: ignore[no-any-return]


@buggy(
    "the model counts its steps in a plain attribute, which no state_dict holds: annealing starts again", "resume",
    effect=None, source="step counters of annealed models", needs="resume_parity on the losses of both runs",
)  # fmt: skip
def counter_not_in_state(attach: Attach, bug: bool) -> None:
    pairs = data()

    def train(model: nn.Module, part: list[tuple[Tensor, Tensor]], optimizer: Any, guards: Any = None) -> list[float]:
        losses = []
        for x, y in part:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if guards is not None:
                guards.log(loss=loss.item())
        return losses

    straight, first, second = Annealed(bug), Annealed(bug), Annealed(bug)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (straight, first, second)]
    expected = train(straight, pairs, optimizers[0])
    train(first, pairs[:HALF], optimizers[1])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    with attach(second, optimizers[2]) as guards:
        losses = train(second, pairs[HALF:], optimizers[2], guards)
        compared(guards, "resume_parity", by_step(expected), by_step(losses, HALF))


@buggy(
    "after resuming the loader starts at its beginning: seen data again, the rest of the epoch never", "data-position", "resume",
    effect=HALF, source="a resume in the middle of an epoch",
    needs=f"{RESUME}, its `position` and guards.log(position=) in samples",
)  # fmt: skip
def data_from_the_start(attach: Attach, bug: bool) -> None:
    pairs, first, size = data(), Session(), 32
    with attach(first.model, first.optimizer) as guards:
        for index, pair in enumerate(pairs[:HALF]):
            first.advance(guards, [pair])
            guards.log(position=(index + 1) * size, inputs=pair[0], targets=pair[1])
        state = first.state(position=HALF * size)
        guards.checkpoint(state)
    second = Session(seed=5)
    for part in ("model", "optimizer", "scheduler"):
        getattr(second, part).load_state_dict(copy.deepcopy(state[part]))
    with attach(second.model, second.optimizer) as guards:
        guards.checkpoint(state)
        start = 0 if bug else HALF
        for index, pair in enumerate(pairs[start : start + HALF], start):
            second.advance(guards, [pair])
            guards.log(position=(index + 1) * size, inputs=pair[0], targets=pair[1])


def validation_loss(model: nn.Module) -> float:
    """Cross-entropy on other data of the same kind, in eval mode."""
    x, y = labelled(64, seed=8)
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y).item()
    model.train()
    return loss


@buggy(
    "the checkpoint records the validation loss of the evaluation before", "checkpoint", effect=19,
    source="a variable that is assigned after the save", needs="guards.checkpoint(state, loss=), guards.log(val_loss=)",
)  # fmt: skip
def stale_loss_recorded(attach: Attach, bug: bool) -> None:
    pairs, run, recorded = data(), Session(), 0.0
    with attach(run.model, run.optimizer) as guards:
        for start in range(0, STEPS, 10):
            run.advance(guards, pairs[start : start + 10])
            loss = validation_loss(run.model)
            guards.log(val_loss=loss)
            recorded = recorded if bug and start else loss
            guards.checkpoint(run.state(val_loss=recorded), loss=recorded)
            recorded = loss


@buggy(
    "the checkpoint records the epoch as its step", "checkpoint", effect=9,
    source="`step` reused for another counter", needs="guards.checkpoint(state)",
)  # fmt: skip
def wrong_step_recorded(attach: Attach, bug: bool) -> None:
    pairs, run = data(), Session()
    with attach(run.model, run.optimizer) as guards:
        for epoch in range(3):
            run.advance(guards, pairs[10 * epoch : 10 * epoch + 10])
            guards.checkpoint(run.state(step=epoch + 1) if bug else run.state())


@buggy(
    "the best weights are kept as a reference, so they are the last ones when they are saved", "checkpoint", effect=None,
    source="best = model.state_dict() without a copy", needs="guards.checkpoint(state, loss=), guards.log(val_loss=)",
)  # fmt: skip
def best_is_last(attach: Attach, bug: bool) -> None:
    pairs, run = data(), Session()
    best: dict[str, Any] = {}
    with attach(run.model, run.optimizer) as guards:
        for start in range(0, STEPS, 10):
            run.advance(guards, pairs[start : start + 10])
            loss = validation_loss(run.model) + (0.5 if start else 0.0)  # the first evaluation is the best
            guards.log(val_loss=loss)
            if not best or loss < best["val_loss"]:
                weights = run.model.state_dict()
                best = {"model": weights if bug else copy.deepcopy(weights), "step": start + 10, "val_loss": loss}
        guards.checkpoint(best, loss=best["val_loss"])


CASES = (
    optimizer_not_loaded, optimizer_not_saved, scheduler_not_saved, nothing_loaded, generator_not_restored,
    counter_not_in_state, data_from_the_start, stale_loss_recorded, wrong_step_recorded, best_is_last,
)  # fmt: skip
