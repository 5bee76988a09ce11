"""RUN-12 to RUN-14: what a step accumulates, how it is clipped, and how its loss is scaled, on small live loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

from karat.core.report import Violation
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching.attached import find, look_through

OURS = {"accumulation", "clipping", "loss-scale"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs)))


@pytest.fixture(autouse=True)
def counted_anew() -> None:
    """Other tests name the classes of schedulers and scalers, and let go of the names, so that their counts tell nothing."""
    look_through()


def loss_of(model: nn.Module, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (16,), generator=draw)
    return nn.functional.cross_entropy(model(torch.randn(16, 6, generator=draw)), targets)


def watched(run: Callable[[nn.Module, torch.optim.Optimizer, Any], None], **declared: Any) -> list[Violation]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, **{"policy": "observe", **declared}) as guards:
        run(model, optimizer, guards)
    return [v for v in guards.violations if v.slug in OURS]


def one(found: list[Violation], slug: str, severity: str, step: int, *words: str) -> None:
    assert [(v.slug, v.severity, v.step) for v in found] == [(slug, severity, step)], found
    assert all(word in found[0].message for word in words), found[0].message


# -- RUN-12 -----------------------------------------------------------------------------------------------------------


def sized(*sizes: int, calls: int = 1) -> Callable[..., None]:
    """Steps that accumulate so many batches each, of a model that is called `calls` times for one."""

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, guards: Any) -> None:
        for step, size in enumerate(sizes):
            optimizer.zero_grad()
            for index in range(size):
                total = sum(loss_of(model, 100 * step + 10 * index + call) for call in range(calls))
                (total / size).backward()
            optimizer.step()

    return run


@pytest.mark.parametrize(
    ("sizes", "step", "words"),
    [
        ((1, 4, 4, 4), 1, "step 0 applies 1 batch,"),
        ((4, 4, 6, 4), 2, "step 2 applies 6 batches"),
        ((4, 2, 2, 2), 2, "step 2 applies 2 batches"),
        ((1, 1, 1, 1), 1, "step 1 applies 1 batch,"),
        ((4, 5, 4), 1, "step 1 applies 5 batches"),
    ],
)
def test_groups_of_another_size_than_declared(sizes: tuple[int, ...], step: int, words: str) -> None:
    one(watched(sized(*sizes), spec={"accumulation": 4}), "accumulation", "FAIL", step, words, "4 are declared")


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 4, 2, 4, 4, 2, 4), (4, 2, 4, 2, 4), (4, 8, 4)])
def test_groups_of_the_declared_size_and_the_rest_of_epochs(sizes: tuple[int, ...]) -> None:
    assert watched(sized(*sizes), spec={"accumulation": 4}) == []
    assert watched(sized(*sizes)) == []


def test_a_model_that_is_called_twice_for_a_batch() -> None:
    assert watched(sized(2, 2, 2, 2, calls=2), spec={"accumulation": 2}) == []
    one(watched(sized(4, 4, 4, 4, 4), spec={"accumulation": 2}), "accumulation", "WARN", 3, "each step applies 4")


def cleared(model: nn.Module, optimizer: torch.optim.Optimizer, guards: Any) -> None:
    for step in range(6):
        for index in range(3):
            optimizer.zero_grad()
            (loss_of(model, 10 * step + index) / 3).backward()
        optimizer.step()


def sharpness(model: nn.Module, optimizer: torch.optim.Optimizer, guards: Any) -> None:
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            shifts = [0.01 * p.grad for p in model.parameters()]
            for p, shift in zip(model.parameters(), shifts, strict=True):
                p += shift
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for p, shift in zip(model.parameters(), shifts, strict=True):
                p -= shift
        optimizer.step()


def test_gradients_that_are_cleared_before_they_are_applied() -> None:
    one(watched(cleared), "accumulation", "WARN", 3, "of the 3 batches of a step only the last counts")
    assert watched(sharpness) == []


# -- RUN-13 -----------------------------------------------------------------------------------------------------------


def clipping(part: Callable[[nn.Module], Any], bound: float, late: bool = False) -> Callable[..., None]:
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, guards: Any) -> None:
        for step in range(4):
            optimizer.zero_grad()
            (10 * loss_of(model, step)).backward()
            for parameters in [] if late else part(model):
                clip_grad_norm_(parameters, bound)
            optimizer.step()
            if late:
                clip_grad_norm_(model.parameters(), bound)

    return run


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (clipping(lambda m: [], 0.5), "nothing clipped them"),
        (clipping(lambda m: [list(m.parameters())], 0.5, late=True), "too early or too late"),
        (clipping(lambda m: [list(m.head.parameters())], 0.5), "only head is clipped"),
        (clipping(lambda m: [[p] for p in m.parameters()], 0.5), "each parameter is clipped by itself"),
    ],
)
def test_gradients_above_the_declared_norm(run: Any, words: str) -> None:
    one(watched(run, spec={"clip_norm": 0.5}), "clipping", "FAIL", 0, "declared 0.5", words)
    undeclared = {"only head is clipped": ["only head is clipped"], "too early or too late": ["once applied"]}.get(
        words, []
    )
    said = [v.message.partition(":")[0] for v in watched(run)]
    assert ["once applied" if "after the step had applied them" in words else words for words in said] == undeclared


def test_clipped_gradients_hold() -> None:
    for bound in (0.5, 1e-3, 1e3):
        assert watched(clipping(lambda m: [list(m.parameters())], bound), spec={"clip_norm": bound}) == []


# -- RUN-14 -----------------------------------------------------------------------------------------------------------


def scaled(
    scaler: GradScaler, *, unscale: bool = True, by_hand: bool = False, direct: bool = False, clip: float | None = None,
    infinite: range = range(0), steps: int = 6, plain: bool = False,
) -> Callable[..., None]:  # fmt: skip
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, guards: Any) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, step) * (float("inf") if step in infinite else 1.0)
            guards.log(loss=loss)
            scaled = scaler.scale(loss)
            (loss if plain else scaled).backward()
            if unscale and clip is not None:
                scaler.unscale_(optimizer)
            if by_hand:
                for parameter in model.parameters():
                    parameter.grad /= scaler.get_scale()
            if clip is not None:
                clip_grad_norm_(model.parameters(), clip)
            if direct:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()

    return run


def scaler_of(scale: float = 2.0**12, **options: Any) -> GradScaler:
    return GradScaler("cpu", init_scale=scale, **options)


@pytest.mark.parametrize("given", [True, False])
def test_scales_that_are_not_undone_or_undone_twice(given: bool) -> None:
    for options, words in (
        ({"direct": True}, "optimizer.step() is called directly"),
        ({"by_hand": True}, "twice"),
        ({"plain": True}, "'loss' was not scaled before backward"),
    ):
        scaler = scaler_of()
        found = watched(scaled(scaler, **options), **({"scaler": scaler} if given else {}))
        one(found, "loss-scale", "FAIL", 0, words)


def test_scaling_that_is_right() -> None:
    scaler = scaler_of()
    for options in ({}, {"clip": 0.01}, {"clip": 100.0}, {"direct": True, "by_hand": True}):
        assert watched(scaled(scaler, **options), spec={"clip_norm": options.get("clip", 1e9)}) == [], options


def test_clipping_before_unscaling() -> None:
    scaler = scaler_of()
    found = watched(scaled(scaler, clip=0.05, unscale=False), scaler=scaler, spec={"clip_norm": 0.05})
    one(found, "clipping", "FAIL", 0, "before they were unscaled", "1/4096 of the limit")


def test_a_scaler_that_skips_for_ever() -> None:
    scaler = scaler_of()
    found = watched(scaled(scaler, infinite=range(5, 99), steps=18), scaler=scaler)
    one(found, "loss-scale", "WARN", 5, "skipped 9 steps in a row since step 5")
    scaler = scaler_of(backoff_factor=0.99)
    found = watched(scaled(scaler, infinite=range(3, 99), steps=40), scaler=scaler)
    assert [(v.severity, v.step) for v in found] == [("WARN", 3), ("FAIL", 3)]
    scaler = scaler_of()
    assert watched(scaled(scaler, infinite=range(2, 6), steps=20), scaler=scaler) == []  # a bad stretch
    scaler = scaler_of()
    assert watched(scaled(scaler, infinite=range(15), steps=30), scaler=scaler) == []  # looks for its scale


def test_an_optimizer_that_the_scaler_does_not_serve() -> None:
    """Of two optimizers one is stepped by the scaler, the other has a loss that was never scaled."""
    first, second, scaler = Net(), Net(), scaler_of()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (first, second)]
    with watch([first, second], optimizers, policy="observe", scaler=scaler) as guards:
        for step in range(6):
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.scale(loss_of(first, step)).backward()
            scaler.step(optimizers[0])
            scaler.update()
            loss_of(second, step).backward()
            optimizers[1].step()
    assert [v for v in guards.violations if v.slug in OURS] == []


# -- what all of them leave behind ------------------------------------------------------------------------------------


def test_a_watched_run_is_bit_for_bit_the_same() -> None:
    ends = []
    for seen in (True, False):
        model, scaler = Net(), scaler_of(growth_interval=3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
        spec = {"accumulation": 2, "clip_norm": 0.5, "schedule": lambda step: 0.01, "lr_range": (0.0, 0.001)}
        guards = watch(model, optimizer, policy="observe", spec=spec) if seen else None
        for step in range(12):
            optimizer.zero_grad()
            for index in range(2):
                loss = loss_of(model, 2 * step + index)
                if guards is not None:
                    guards.log(loss=loss)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
        if guards is not None:
            assert {v.slug for v in guards.finish().violations} >= {"lr-schedule", "lr-range", "clipping"}
        ends.append([*model.parameters(), torch.tensor(scaler.get_scale()), torch.tensor(scheduler.get_last_lr())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert all(not getattr(p, "_backward_hooks", None) for p in ends[0][:4])


def test_schedulers_inside_others_and_dead_ones_are_not_followed() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
    whole = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])
    found = find([optimizer], None, None)
    assert [f.scheduler for f in found.schedulers if f.drives == 0] == [whole]
    before = found.schedulers[[f.drives for f in found.schedulers].index(0)]
    optimizer.step()
    whole.step()
    assert before.steps == 1
    del whole, parts
    assert before.scheduler is None and found.driving(0) == [] and find([optimizer], None, None).driving(0) == []
