"""RUN-42 to 44 of checkpoints: what is written is what it says, what is read is what is there; and all that is legitimate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from karat.core.report import Violation
from karat.invariants.runtime import Stopped, Watch, watch

MINE = ("resume", "checkpoint", "data-position")


class Run:
    """Model, optimizer and schedule, and their guards."""

    def __init__(self, seed: int = 0, momentum: bool = True, schedule: bool = True, **options: Any) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        kind: Any = torch.optim.AdamW if momentum else torch.optim.SGD
        self.optimizer = kind(self.model.parameters(), lr=5e-2)
        self.scheduler = StepLR(self.optimizer, 5) if schedule else None
        self.options = options
        self.guards: Watch = None  # type: ignore[assignment]

    def watched(self) -> Run:
        self.guards = watch(self.model, self.optimizer, **{"policy": "observe", **self.options})
        return self

    def go(self, steps: int, start: int = 0) -> Run:
        for step in range(start, start + steps):
            x, y = batch(step)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return self

    def state(self, step: int, **more: Any) -> dict[str, Any]:
        held: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": step,
        }
        if self.scheduler is not None:
            held["scheduler"] = self.scheduler.state_dict()
        return copy.deepcopy({**held, **more})

    def load(self, state: dict[str, Any], *parts: str) -> Run:
        for part in parts:
            getattr(self, part).load_state_dict(copy.deepcopy(state[part]))
        return self

    def said(self) -> list[Violation]:
        return [v for v in self.guards.finish().violations if v.slug in MINE]


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(12, 4, generator=draw), torch.randint(0, 3, (12,), generator=draw)


def told(violations: list[Violation]) -> list[tuple[str, str]]:
    return [(v.slug, v.severity) for v in violations]


def saved(**options: Any) -> dict[str, Any]:
    return Run(**options).go(6).state(6)


# -- what is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [lambda n: n, lambda n: n - 1])
def test_a_checkpoint_that_is_what_it_says(record: Callable[[int], int]) -> None:
    run = Run().watched()
    for evaluation in range(3):
        run.go(4, 4 * evaluation)
        loss = 1.0 / (evaluation + 1)
        run.guards.log(val_loss=loss)
        run.guards.checkpoint(run.state(record(4 * evaluation + 4)), loss=loss, step=record(4 * evaluation + 4))
    assert not run.said() and "checkpoint" not in run.guards.not_checked


def test_nothing_was_told() -> None:
    run = Run().watched().go(3)
    not_checked = run.guards.finish().not_checked
    assert "was not called" in not_checked["checkpoint"] and "resume_parity" in not_checked["resume"]


def test_the_weights_of_another_model() -> None:
    run, other = Run().watched().go(4), Run(seed=3).go(2)
    weights = copy.deepcopy(other.model.state_dict())
    del other
    run.guards.checkpoint(run.state(4) | {"model": weights})
    (said,) = run.said()
    assert told([said]) == [("checkpoint", "FAIL")] and "are not the model's" in said.message


def test_weights_that_are_not_the_models_and_are_meant() -> None:
    run = Run().watched().go(1)
    average = copy.deepcopy(run.model)  # alive, and nobody declared it
    shadow = {name: t.clone() for name, t in run.model.state_dict().items()}
    run.go(3, 1)
    for name, t in run.model.state_dict().items():
        shadow[name].lerp_(t, 0.3)
    run.guards.checkpoint(run.state(4) | {"model": average.state_dict()})
    run.guards.checkpoint(run.state(4) | {"model": shadow})
    run.guards.checkpoint(run.state(2) | {"model": copy.deepcopy(average.state_dict())})  # of an older step
    run.guards.checkpoint(run.model.state_dict())
    run.guards.checkpoint({f"module.{k}": v.half() for k, v in run.model.state_dict().items()})
    run.guards.checkpoint(run.model)
    run.guards.checkpoint({"anything": [1, "x", None]})
    run.guards.checkpoint(loss=0.3)
    assert not run.said()


def test_a_step_that_is_another_counter() -> None:
    run = Run().watched().go(8)
    run.guards.checkpoint(run.state(2))
    (said,) = run.said()
    assert told([said]) == [("checkpoint", "WARN")] and said.step == 7
    assert said.message == "the checkpoint records step 2, its weights are those after 8 steps"
    run = Run().watched().go(8)
    run.guards.checkpoint(run.state(2), step=2)
    assert told(run.said()) == [("checkpoint", "FAIL")]
    run = Run().watched().go(8)
    run.guards.checkpoint(run.state(32))  # counts micro-batches, or went on from elsewhere
    assert not run.said()


def best(run: Run, keep: Callable[[Any], Any]) -> list[Violation]:
    """Keeps the first evaluation's weights as the best, and writes them at the end."""
    run.watched().go(4)
    run.guards.log(val_loss=0.5)
    held = {"model": keep(run.model.state_dict()), "step": 4}
    run.go(4, 4)
    run.guards.log(val_loss=torch.tensor(0.9))
    run.guards.checkpoint(held, loss=0.5)
    return run.said()


def test_the_best_weights_kept_by_reference() -> None:
    (said,) = best(Run(schedule=False), lambda state: state)
    assert told([said]) == [("checkpoint", "FAIL")]
    assert "0.5 is val_loss after 4 steps, the weights are those after 8: they were kept by reference" in said.message
    (said,) = best(Run(schedule=False), dict)
    assert "by reference" in said.message
    assert not best(Run(schedule=False), copy.deepcopy)


def test_the_loss_of_the_evaluation_before() -> None:
    run = Run().watched()
    for evaluation, loss in enumerate((0.9, 0.7, 0.6)):
        run.go(3, 3 * evaluation)
        run.guards.log(loss=1.0, val_loss=loss)
        run.guards.checkpoint(run.state(3 * evaluation + 3), loss=0.7 if evaluation else 0.9)
    (said,) = run.said()
    assert (said.severity, said.step) == ("FAIL", 8)
    assert "it is of an evaluation before" in said.message and "the last val_loss is 0.6" in said.evidence


def test_losses_that_are_rightly_recorded() -> None:
    run = Run().watched().go(3)
    run.guards.log(val_loss=0.9, train_loss=1.2)
    run.guards.checkpoint(run.state(3), loss=0.9)
    run.go(2, 3)
    run.guards.checkpoint(run.state(5), loss=0.9)  # the last evaluation there is
    run.go(1, 5)
    run.guards.log(val_loss=0.8)
    run.guards.checkpoint(run.state(6), loss=0.8500001)  # a mean, another loss: nothing is known of it
    assert not run.said()
    kept = Run(schedule=False).watched().go(3)
    kept.guards.log(val_loss=0.5)
    good = copy.deepcopy(kept.model.state_dict())
    kept.go(3, 3)
    kept.guards.log(val_loss=0.9)
    kept.model.load_state_dict(good)  # back to the best, by load_state_dict
    kept.guards.checkpoint({"model": kept.model.state_dict(), "step": 3}, loss=0.5)
    kept.go(1, 6)
    with torch.no_grad():
        for name, p in kept.model.named_parameters():
            p.data.copy_(good[name])  # and by hand
    kept.guards.checkpoint({"model": kept.model.state_dict()}, loss=0.5)
    assert not kept.said()


def test_a_loss_that_is_no_number() -> None:
    run = Run().watched().go(2)
    run.guards.checkpoint(run.state(2), loss=math.nan)
    assert told(run.said()) == [("checkpoint", "FAIL")]


def test_what_a_resume_will_need_is_not_there() -> None:
    run = Run().watched().go(3)
    state = run.state(3)
    del state["optimizer"]
    run.guards.checkpoint(state)
    (said,) = run.said()
    assert told([said]) == [("resume", "WARN")] and "no state of AdamW" in said.message
    run = Run().watched().go(3)
    state = run.state(3)
    del state["scheduler"]
    run.guards.checkpoint(state)
    (said,) = run.said()
    assert told([said]) == [("resume", "WARN")] and "no state of StepLR" in said.message
    run = Run().watched().go(3)
    run.guards.checkpoint({"model": run.model.state_dict(), "step": 3})  # weights to be used, not to go on from
    assert not run.said()


# -- what is read ---------------------------------------------------------------------------------------------------------


def test_a_resume_that_brings_everything_back() -> None:
    state = saved()
    run = Run(seed=4).load(state, "model", "optimizer", "scheduler").watched()
    run.guards.checkpoint(state, loss=0.4)
    run.go(4, 6)
    run.guards.checkpoint(run.state(10), step=10)  # counts on
    assert not run.said() and "resume" not in run.guards.not_checked


@pytest.mark.parametrize(
    ("parts", "expected", "message"),
    [
        (("model", "scheduler"), ("resume", "FAIL"), "the optimizer's state in the checkpoint of step 6 was not loaded: "
         "AdamW starts from nothing"),
        (("model", "optimizer"), ("resume", "WARN"), "StepLR stands at 0, the checkpoint at 6"),
        (("optimizer", "scheduler"), ("checkpoint", "FAIL"), "the weights of the checkpoint of step 6 were not loaded"),
    ],
)  # fmt: skip
def test_a_part_that_was_not_loaded(parts: tuple[str, ...], expected: tuple[str, str], message: str) -> None:
    state = saved()
    run = Run(seed=4).load(state, *parts).watched()
    run.guards.checkpoint(state)
    run.go(1, 6)
    (said,) = run.said()
    assert told([said]) == [expected] and said.step == 6 and message in said.message


def test_parts_that_are_not_in_it() -> None:
    state = saved()
    weights = {"model": state["model"], "step": 6}
    run = Run(seed=4).load(state, "model").watched()
    run.guards.checkpoint(weights)
    (said,) = run.said()
    assert told([said]) == [("resume", "WARN")] and "has no optimizer state" in said.message
    plain = Run(seed=4, momentum=False, schedule=False).load(state, "model").watched()
    plain.guards.checkpoint(weights)  # SGD has nothing to remember
    assert not plain.said()
    new = Run(seed=4).watched()
    new.guards.checkpoint(new.state(0))  # before the first step, of now
    assert not new.said()


def test_some_weights_that_were_not_loaded() -> None:
    state = saved(schedule=False)
    run = Run(seed=4, schedule=False).load(state, "model", "optimizer").watched()
    nn.init.normal_(run.model[2].weight)  # type: ignore[arg-type]
    run.guards.checkpoint(state)
    (said,) = run.said()
    assert told([said]) == [("checkpoint", "WARN")] and "1 parameters are not those" in said.message
    assert "2.weight" in said.message


def test_strict_stops_at_the_checkpoint() -> None:
    state = saved(schedule=False)
    run = Run(seed=4, schedule=False, policy="strict").load(state, "model").watched()
    with pytest.raises(Stopped, match="AdamW starts from nothing"):
        run.guards.checkpoint(state)


# -- load_state_dict while it is watched ----------------------------------------------------------------------------------


def test_names_that_are_all_others() -> None:
    state = {f"module.{k}": v for k, v in saved()["model"].items()}
    run = Run(seed=4).watched()
    run.model.load_state_dict(state, strict=False)
    run.go(1)
    (said,) = run.said()
    assert told([said]) == [("checkpoint", "FAIL")] and said.step == 0
    assert "loaded none of the 4 parameters" in said.message and "module.0.weight" in said.evidence


def test_a_second_try_that_loads_them() -> None:
    state = saved()["model"]
    run = Run(seed=4).watched()
    with pytest.raises(RuntimeError):
        run.model.load_state_dict({f"module.{k}": v for k, v in state.items()})
    run.model.load_state_dict(state)
    run.go(1)
    assert not run.said()


def test_a_new_head_and_a_renamed_layer() -> None:
    state = saved()["model"]
    run = Run(seed=4).watched()
    run.model.load_state_dict({k: v for k, v in state.items() if k.startswith("0.")}, strict=False)
    run.go(1)
    assert not run.said()
    run = Run(seed=4).watched()
    run.model.load_state_dict({("head." + k if k == "2.weight" else k): v for k, v in state.items()}, strict=False)
    run.go(1)
    (said,) = run.said()
    assert told([said]) == [("checkpoint", "WARN")] and "2.weight" in said.message


def test_a_copy_of_the_model_may_load_what_it_likes() -> None:
    run = Run(seed=4).watched()
    copy.deepcopy(run.model).load_state_dict({}, strict=False)
    run.go(1)
    assert not run.said()
    assert not run.model._load_state_dict_post_hooks


# -- position -------------------------------------------------------------------------------------------------------------


def position(first: int, step: int = 12) -> list[Violation]:
    state = saved(schedule=False) | {"position": 72}
    run = Run(seed=4, schedule=False).load(state, "model", "optimizer").watched()
    run.guards.checkpoint(state)
    for k in range(3):
        run.go(1, 6 + k)
        run.guards.log(position=first + k * step)
    return run.said()


def test_data_that_starts_again() -> None:
    (said,) = position(12)
    assert told([said]) == [("data-position", "FAIL")] and said.step == 6 and said.margin == -60
    assert "goes on at 12 where the checkpoint stopped at 72: it starts at its beginning again" in said.message
    (said,) = position(60)
    assert "some of it comes again" in said.message
    assert not position(72) and not position(84)


# -- losses ---------------------------------------------------------------------------------------------------------------


def trend(losses: list[Any], **more: Any) -> list[Violation]:
    run = Run(schedule=False).watched()
    for loss in losses:
        run.go(1)
        run.guards.log(loss=loss, **more)
    return [v for v in run.guards.finish().violations if v.slug in ("loss-trend", "validation")]


def noise(count: int, level: float, slope: float = 0.0, seed: int = 0) -> list[float]:
    draw = torch.Generator().manual_seed(seed)
    return [level + slope * k + 0.05 * float(torch.randn((), generator=draw)) for k in range(count)]


@pytest.mark.parametrize("wrap", [float, torch.tensor])
def test_a_loss_that_climbs(wrap: Any) -> None:
    (said,) = trend([wrap(x) for x in noise(61, 1.4, 0.02)])
    assert (said.id, said.severity) == ("RUN-47", "WARN") and said.step in (39, 40, 59, 60)
    assert "the loss climbs" in said.message


def test_losses_that_do_not_climb() -> None:
    assert not trend(noise(60, 1.4))
    assert not trend(noise(60, 1.4, -0.01))
    assert not trend(noise(20, 3.0) + noise(20, 1.0) + noise(20, 2.0))  # a new task, below the start
    assert not trend(noise(200, 1.4, seed=2))
    assert not trend([1.0] * 20 + [math.nan] * 20)  # RUN-9's


def test_validation_far_below_training() -> None:
    run = Run(schedule=False).watched()
    for k in range(4):
        run.go(1, k)
        run.guards.log(loss=2.0, val_loss=0.1)
    (said,) = [v for v in run.guards.finish().violations if v.slug == "validation"]
    assert (said.id, said.severity, said.step) == ("RUN-48", "WARN", 2)
    assert "0.1 where the training loss is 2" in said.message
    assert not trend([2.0] * 5, val_loss=1.1) and not trend([-2.0] * 5, val_loss=-5.0)


def test_without_losses_it_is_said() -> None:
    not_checked = Run().watched().go(2).guards.finish().not_checked
    assert "guards.log(loss=" in not_checked["loss-trend"] and "val_loss" in not_checked["validation"]
