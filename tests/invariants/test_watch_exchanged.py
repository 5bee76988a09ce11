"""What is in the wrong place: losses of several batches that are added up, groups that decay, an average that stays, the
loss that a checkpoint records, directions that narrow; each beside what looks alike and is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.watched import watched
from torch import Tensor, nn

from karat.invariants.runtime.watching.undivided import bare

Attach = Callable[..., Any]
Run = Callable[[Attach], None]
PARTS = 4


def of(slug: str, run: Run) -> list[tuple[str, int]]:
    return [(v.severity, v.step) for v in watched(run) if v.slug == slug]


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, out))


# -- RUN-12 -----------------------------------------------------------------------------------------------------------

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth": F.smooth_l1_loss,
    "powers": lambda out, target: (out - target).pow(2).mean(),
    "sum of terms": lambda out, target: F.mse_loss(out, target) + 0.01 * out.pow(2).mean(),
    "logits": lambda out, target: F.binary_cross_entropy_with_logits(out, (target > 0).float()),
}


def in_parts(loss: str, log: str, divided: bool, out: int = 1) -> Run:
    def run(attach: Attach) -> None:
        model = small(out)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        guards = attach(model, optimizer, spec={"accumulation": PARTS})
        for _ in range(5):
            total = 0.0
            for _ in range(PARTS):
                x = torch.randn(16, 6)
                whole = LOSSES[loss](model(x), x[:, :out].sin())
                part = whole / PARTS if divided else whole
                total += whole.item()
                if log in ("whole", "part"):
                    guards.log(loss=whole if log == "whole" else part)
                if log == "number":
                    guards.log(loss=part.item())
                part.backward()
            if log == "mean":
                guards.log(loss=total / PARTS)
            optimizer.step()
            optimizer.zero_grad()
            if log == "late":
                guards.log(loss=total / PARTS)

    return run


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("log", ["whole", "part"])
def test_a_logged_loss_tells_that_it_goes_backward_undivided(loss: str, log: str) -> None:
    assert of("accumulation", in_parts(loss, log, False)) == [("WARN", 0)]
    assert not of("accumulation", in_parts(loss, log, True))


@pytest.mark.parametrize(("log", "step"), [("number", 0), ("mean", 1), ("late", 1)])
def test_numbers_tell_it_of_a_mean_square_error(log: str, step: int) -> None:
    assert of("accumulation", in_parts("mse", log, False)) == [("WARN", step)]
    assert not of("accumulation", in_parts("mse", log, True))
    assert not of("accumulation", in_parts("smooth", log, False))  # of others they do not


def test_a_sum_over_as_many_outputs_as_batches_is_not_told_by_numbers() -> None:
    """Divided by four, it is the mean over four outputs."""
    assert not of("accumulation", in_parts("mse", "number", False, out=PARTS))
    assert of("accumulation", in_parts("mse", "whole", False, out=PARTS)) == [("WARN", 0)]


def test_which_losses_are_bare_means() -> None:
    x, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    for loss in (F.mse_loss(x, y), F.mse_loss(x, y) + x.sum() * 0.1, (x - y).abs().mean()):
        assert bare(loss.grad_fn)
    for loss in (
        F.mse_loss(x, y) / 4, F.mse_loss(x, y, reduction="sum"), ((x - y) ** 2 / 4).mean(), F.mse_loss(x, y) * 0.25 + x.mean(),
        x.sum(),
    ):  # fmt: skip
        assert not bare(loss.grad_fn)


@pytest.mark.parametrize(("parts", "divided"), [(4, False), (4, True), (2, False)])
def test_cross_entropies_without_a_declaration(parts: int, divided: bool) -> None:
    """Two of a step may be two losses; four alike, each with its own backward, are taken for batches."""

    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        attach(model, optimizer)
        for _ in range(4):
            for _ in range(parts):
                x = torch.randn(16, 6)
                (F.cross_entropy(model(x), x[:, :3].argmax(1)) / (parts if divided else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert of("accumulation", run) == ([("WARN", 1)] if parts == 4 and not divided else [])


# -- RUN-18 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrices", "vectors", "wrong"), [(0.0, 0.1, True), (0.1, 0.0, False), (0.0, 0.0, False), (0.1, 0.1, False)]
)
def test_groups_that_were_exchanged(matrices: float, vectors: float, wrong: bool) -> None:
    def run(attach: Attach) -> None:
        model = small()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": matrices},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": vectors},
        ]
        optimizer = torch.optim.AdamW(groups, 1e-3)
        attach(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()

    assert of("weight-decay", run) == ([("WARN", 0)] if wrong else [])


# -- RUN-16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [10, 70, 75])
@pytest.mark.parametrize("put_back", ["", "load", "copy"])
def test_an_average_that_stays(at: int, put_back: str) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        mean = copy.deepcopy(model)
        attach(model, optimizer)
        for step in range(at + 10):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
            with torch.no_grad():
                for slow, p in zip(mean.parameters(), model.parameters(), strict=True):
                    slow.lerp_(p, 0.05)
            if step != at:
                continue
            trained = copy.deepcopy(model.state_dict())
            model.load_state_dict(mean.state_dict())
            model.eval()
            with torch.no_grad():
                model(x)
                if put_back == "copy":
                    for name, p in model.named_parameters():
                        p.copy_(trained[name])
            model.train()
            if put_back == "load":
                model.load_state_dict(trained)

    found = [v for v in watched(run) if v.slug == "parameter-moves" and v.where == "evaluated"]
    assert [(v.severity, v.step) for v in found] == ([] if put_back else [("WARN", at + 1)])


def test_a_loop_that_loads_by_design_is_left_alone() -> None:
    """The weights of each round begin from those of all: loaded from the first step on, evaluated or not."""

    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        slow = copy.deepcopy(model.state_dict())
        attach(model, optimizer)
        for step in range(40):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
            if step % 5 == 4:
                slow = {name: (slow[name] + value) / 2 for name, value in model.state_dict().items()}
                model.load_state_dict(slow)
            if step % 10 == 9:
                model.eval()
                with torch.no_grad():
                    model(x)
                model.train()

    assert not [v for v in watched(run) if v.where == "evaluated"]


# -- RUN-43, 48 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", ["batch", "value", "rounded", "perplexity", "mean", "other metric"])
def test_a_recorded_loss_that_nobody_logged(recorded: str) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        guards = attach(model, optimizer)
        seen: list[float] = []
        for step in range(12):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            loss.backward()
            optimizer.step()
            if step % 4 == 3:
                with torch.no_grad():
                    x = torch.randn(64, 6)
                    value = F.cross_entropy(model(x), x[:, :3].argmax(1)).item()
                seen.append(value)
                guards.log(val_loss=value, wer=0.123)
                given = {
                    "batch": loss.item() + 0.1, "value": value, "rounded": round(value, 3), "other metric": 0.123,
                    "perplexity": float(torch.tensor(value).exp()), "mean": sum(seen) / len(seen),
                }[recorded]  # fmt: skip
                guards.checkpoint({"model": copy.deepcopy(model.state_dict())}, loss=given)

    found = of("checkpoint", run)
    assert found == ([("WARN", 3)] if recorded == "batch" else [])


@pytest.mark.parametrize("terms", [1, 2])
def test_a_validation_loss_beside_a_training_loss_of_several_terms(terms: int) -> None:
    def run(attach: Attach) -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        guards = attach(model, optimizer)
        for _ in range(6):
            x = torch.randn(16, 6)
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            loss = loss + 300 * model(x).square().mean() if terms == 2 else loss
            guards.log(loss=loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(val_loss=0.3)

    assert bool(of("validation", run)) is (terms == 1)


# -- RUN-36 -----------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.ahead = small(8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(x)
        return z, self.ahead(z)


@pytest.mark.parametrize("held_apart", [False, True])
def test_two_outputs_that_narrow_together(held_apart: bool) -> None:
    def run(attach: Attach) -> None:
        model = Pair()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        attach(model, optimizer)
        for _ in range(66):
            x = torch.randn(32, 6)
            (z, p), (z2, p2) = (model(x + 0.2 * torch.randn_like(x)) for _ in range(2))
            loss = -(F.cosine_similarity(p, z2).mean() + F.cosine_similarity(p2, z).mean())
            if held_apart:
                logits = 5 * F.normalize(p, dim=1) @ F.normalize(z2, dim=1).T
                loss = F.cross_entropy(logits, torch.arange(32))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found = [v for v in watched(run) if v.slug == "collapse"]
    assert bool(found) is not held_apart
    assert held_apart or (found[0].severity == "WARN" and "point one way" in found[0].message)
