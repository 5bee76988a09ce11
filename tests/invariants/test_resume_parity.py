"""resume_parity: what a resume does not bring back is named, by trying; what it does is one and the same run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from karat.core.errors import ConfigError
from karat.invariants.runtime import resume_parity


class Network(nn.Module):
    def __init__(self, drop: float = 0.0, counts: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(drop), nn.Linear(8, 3))
        self.counts, self.seen = counts, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.net(x) * (1.0 + 0.1 * self.seen if self.counts else 1.0)  # type: ignore[no-any-return]


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=draw), torch.randint(3, (16,), generator=draw)


def made(drop: float = 0.0, counts: bool = False, schedule: bool = True) -> dict[str, Any]:
    model = Network(drop, counts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if schedule:
        held["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return held


def advance(objects: dict[str, Any], pair: tuple[Tensor, Tensor]) -> float:
    loss = F.cross_entropy(objects["model"](pair[0]), pair[1])
    objects["optimizer"].zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    objects["optimizer"].step()
    if "scheduler" in objects:
        objects["scheduler"].step()
    return loss.item()


def step(objects: dict[str, Any], i: int) -> float:
    return advance(objects, batch(i))


def causes(report: Any) -> list[tuple[str, str]]:
    return [(f.slug, f.where) for f in report.findings if f.word == "FAIL"]


def test_a_run_that_is_saved_whole_goes_on_bit_for_bit() -> None:
    report = resume_parity(made, step)
    assert report.holds and report.exit_code == 0 and report.compared > 50 and not report.first_difference
    assert "3 steps after it are equal" in str(report)


def test_the_generators_are_left_as_they_were() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]
    resume_parity(lambda: made(drop=0.5), step)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[union-attr]


def test_dropout_after_a_resume_draws_what_it_drew_at_the_start() -> None:
    report = resume_parity(lambda: made(drop=0.5), step)
    assert causes(report) == [("resume", "the global generator of torch")] and report.exit_code == 1
    assert "was not restored; step 3: the loss is" in report.findings[0].message


def test_each_generator_by_its_name() -> None:
    def noisy(objects: dict[str, Any], i: int) -> float:
        x, y = batch(i)
        return advance(objects, (x + float(np.random.normal()) + random.random(), y))

    report = resume_parity(made, noisy)
    assert sorted(causes(report)) == [
        ("resume", "the global generator of numpy"), ("resume", "the global generator of random"),
    ]  # fmt: skip


class Generators:
    """What a checkpoint should hold besides."""

    def state_dict(self) -> dict[str, Any]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])


def test_generators_in_the_checkpoint_mend_it() -> None:
    assert resume_parity(lambda: made(drop=0.5) | {"generators": Generators()}, step).holds


def test_a_counter_that_no_state_dict_holds() -> None:
    report = resume_parity(lambda: made(counts=True), step)
    assert causes(report) == [("resume", "the attribute `seen` of `model`")]
    assert "is in no state_dict" in report.findings[0].message


class Scheduler:
    """A schedule of one's own, without a state."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.count = optimizer, 0

    def step(self) -> None:
        self.count += 1
        self.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + self.count)


def test_an_object_without_a_state() -> None:
    def with_it() -> dict[str, Any]:
        held = made(schedule=False)
        return held | {"scheduler": Scheduler(held["optimizer"])}

    def stepped(objects: dict[str, Any], i: int) -> float:
        loss = F.cross_entropy(objects["model"](batch(i)[0]), batch(i)[1])
        objects["optimizer"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in objects["optimizer"].param_groups:
            group["lr"] = 1e-2 / (1 + objects["scheduler"].count)
        objects["optimizer"].step()
        objects["scheduler"].count += 1
        return loss.item()

    report = resume_parity(with_it, stepped)
    assert causes(report) == [("resume", "`scheduler`")]
    assert "(Scheduler) has no state_dict" in report.findings[0].message


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    return (batch(i) for i in itertools.count())


def test_data_that_starts_at_its_beginning_again() -> None:
    report = resume_parity(
        lambda: made() | {"data": endless()}, lambda objects, i: advance(objects, next(objects["data"]))
    )
    assert causes(report) == [("data-position", "`data`")]
    assert "its data starts at the beginning" in report.findings[0].message


class Position:
    """Data that knows where it is."""

    def __init__(self) -> None:
        self.place = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        self.place += 1
        return batch(self.place)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_data_with_a_position_goes_on() -> None:
    report = resume_parity(
        lambda: made() | {"data": Position()}, lambda objects, i: advance(objects, next(objects["data"]))
    )
    assert report.holds


def test_two_causes_are_both_named() -> None:
    report = resume_parity(
        lambda: made(drop=0.5, counts=True) | {"data": endless()},
        lambda objects, i: advance(objects, next(objects["data"])),
    )
    assert sorted(at for _, at in causes(report)) == [
        "`data`", "the attribute `seen` of `model`", "the global generator of torch",
    ]  # fmt: skip


def test_what_make_does_not_build_leaves_it_undecided() -> None:
    data = endless()
    report = resume_parity(made, lambda objects, i: advance(objects, next(data)))
    assert report.exit_code == 2 and not report.holds
    assert "differ before any interruption" in report.findings[0].message


class Boxed(nn.Linear):
    """A state that a file can hold only as a pickled object."""

    def get_extra_state(self) -> Any:
        return {"path": Odd()}

    def set_extra_state(self, state: Any) -> None:
        pass


class Odd:
    pass


def test_a_state_that_is_not_read_without_unpickling_is_a_warning() -> None:
    def boxed() -> dict[str, Any]:
        model = Boxed(6, 3)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    report = resume_parity(boxed, step)
    (warning, parity) = report.findings
    assert warning.word == "WARN" and "weights_only" in warning.message and parity.word == "ok"
    assert report.exit_code == 0 and not report.holds


def test_tolerance_and_what_cannot_be_tried() -> None:
    def shaken(objects: dict[str, Any], i: int) -> float:
        return advance(objects, batch(i)) * (1 + 1e-9 * float(torch.rand(())))

    assert causes(resume_parity(made, shaken)) == [("resume", "the global generator of torch")]
    assert resume_parity(made, shaken, tolerance=1e-6).holds
    with pytest.raises(ConfigError, match="at = 6 of 6"):
        resume_parity(made, step, at=6)
    with pytest.raises(ConfigError, match="state_dict"):
        resume_parity(lambda: {"data": endless()}, step)
