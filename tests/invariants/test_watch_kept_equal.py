"""RUN-19, 20, 21, 22: what must agree with the weights, averages, ties, replicas and buffers, and does not."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from corpus.moving import data, net, only, train
from torch import Tensor, nn

from karat.core.report import Violation
from karat.invariants.runtime import watch
from karat.invariants.runtime.watching import averaging

# -- RUN-19 ----------------------------------------------------------------------------------------------------------


def averaged(update: Callable[[int, Tensor, Tensor], None], steps: int = 16, **options: Any) -> list[Violation]:
    """The loop with an average of its own; update(step, mean, value) after the step."""
    model = net(norm=options.pop("norm", False))
    mean = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.no_grad()
    def follow(step: int) -> None:
        for m, v in zip(mean.parameters(), model.parameters(), strict=True):
            update(step, m, v)
        if options.get("buffers"):
            for m, v in zip(mean.buffers(), model.buffers(), strict=True):
                m.copy_(v)

    spec = {"ema": options["decay"]} if "decay" in options else None
    return train(model, optimizer, steps, after=follow, ema=mean, spec=spec)


def right(step: int, mean: Tensor, value: Tensor) -> None:
    mean.lerp_(value, 0.1)


@pytest.mark.parametrize("declared", [{"decay": 0.9}, {}])
def test_an_average_that_is_right(declared: dict[str, float]) -> None:
    assert averaged(right, **declared) == []


@pytest.mark.parametrize(
    "update, words",
    [
        (lambda s, m, v: m.lerp_(v, 0.9), "exchanged"),
        (lambda s, m, v: m.lerp_(v, 0.1).lerp_(v, 0.1), "twice"),
        (lambda s, m, v: m.lerp_(v, 0.02), "keeps 0.98 of itself"),
        (lambda s, m, v: m.lerp_(m.clone(), 0.1), "another model"),
        (lambda s, m, v: m.lerp_(-v, 0.1), "elsewhere"),
    ],
)
def test_an_average_that_is_wrong_from_the_start(update: Any, words: str) -> None:
    only(averaged(update, decay=0.9), "ema", "FAIL", 0, words)


def test_an_average_that_stops_never_starts_or_comes_every_few_steps() -> None:
    only(
        averaged(lambda s, m, v: right(s, m, v) if s < 6 else None, decay=0.9), "ema", "FAIL", 6, "not updated any more"
    )
    only(averaged(lambda s, m, v: None, 16, decay=0.9), "ema", "WARN", 0, "not updated once")
    found = averaged(lambda s, m, v: None, 40, decay=0.9)
    assert [v.severity for v in found] == ["WARN", "FAIL"]
    every_fifth = averaged(lambda s, m, v: right(s, m, v) if s % 5 == 4 else None, 30, decay=0.9)
    assert [v.severity for v in every_fifth] in ([], ["WARN"])


def test_an_average_whose_decay_warms_up_and_one_in_other_precision() -> None:
    def warming(step: int, mean: Tensor, value: Tensor) -> None:
        mean.lerp_(value, 1 - min(0.9, (1 + step) / (10 + step)))

    assert averaged(warming, 30, decay=0.9) == []


def test_torchs_own_average_and_its_buffers() -> None:
    model = net(norm=True)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follow = lambda step: mean.update_parameters(model)  # noqa: E731
    assert train(model, optimizer, 12, after=follow, ema=mean, spec={"ema": 0.9}) == []
    assert averaged(right, norm=True, decay=0.9, buffers=True) == []
    found = averaged(right, norm=True, decay=0.9)
    only(found, "ema", "WARN", 0, "buffers are not copied", "1.running_mean")


def test_an_average_before_the_step_and_one_that_is_the_model() -> None:
    model = net()
    mean = copy.deepcopy(model)

    @torch.no_grad()
    def early(step: int) -> None:
        for m, v in zip(mean.parameters(), model.parameters(), strict=True):
            right(step, m, v)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    only(train(model, optimizer, before=early, ema=mean, spec={"ema": 0.9}), "ema", "FAIL", 0, "before the step")
    only(train(model, optimizer, ema=model), "ema", "FAIL", 0, "the averaged model is the model itself")


def test_every_kind_of_average_has_its_words() -> None:
    assert set(averaging.SAID) == set(averaging.Kind) - {averaging.Kind.RIGHT, averaging.Kind.MISSING}


# -- RUN-20 ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x.argmax(1)))  # type: ignore[no-any-return]


PAIR = {"tied": [["embedding.weight", "head.weight"]]}


def test_ties() -> None:
    model = Tied()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec=PAIR) == []
    model = Tied(tie=False)
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1)) == []
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), spec=PAIR)
    only(found, "ties", "FAIL", 0, "two parameters", "declared is one")
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    only(train(model, torch.optim.SGD(model.parameters(), lr=0.1)), "ties", "WARN", 0, "head.weight is a copy")


@pytest.mark.parametrize("held, severity", [(False, "FAIL"), (True, "WARN")])
def test_a_tie_that_breaks_in_mid_run(held: bool, severity: str) -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def untie(step: int) -> None:
        if step == 4:
            model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
            if held:
                optimizer.add_param_group({"params": [model.head.weight]})

    found = [v for v in train(model, optimizer, 8, after=untie) if v.slug == "ties"]
    only(found, "ties", severity, 5, "they were one until step 5")


# -- RUN-21 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_first", [True, False])
@pytest.mark.parametrize("apart", [None, 5])
def test_replicas_in_one_process(other_first: bool, apart: int | None) -> None:
    model, other = net(), net()
    of_model = torch.optim.SGD(model.parameters(), lr=0.1)
    of_other = torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, of_model, replicas=[other], policy="observe") as guards:
        for step in range(10):
            for m in (model, other):
                m.zero_grad()
                x, y = data(step)
                F.cross_entropy(m(x), y).backward()
            if step == apart:
                for p in other.parameters():
                    assert p.grad is not None
                    p.grad.mul_(0.5)
            for optimizer in (of_other, of_model) if other_first else (of_model, of_other):
                optimizer.step()
    found = [v for v in guards.violations if v.slug == "replicas"]
    if apart is None:
        assert found == []
        assert next(g for g in guards.finish() if g.slug == "replicas").checks >= 10
    else:
        only(found, "replicas", "FAIL", 5, "replica 1 differs")


SCRIPT = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from karat.invariants.runtime import watch

rank, part = int(sys.argv[1]), sys.argv[2]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
torch.manual_seed(0)
ddp = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
alone = part == "one" and rank == 1
guards = None if alone else watch(ddp, optimizer, policy="observe", every=4)
for step in range(10):
    torch.manual_seed(10 * step + rank)
    optimizer.zero_grad()
    (ddp.module if part == "past" else ddp)(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    dist.barrier()
if guards is not None:
    report = guards.finish()
    print([(v.slug, v.severity, v.step) for v in guards.violations if v.slug == "replicas"],
          guards.not_checked.get("replicas", ""))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["right", "past", "one"])
def test_replicas_in_two_processes(part: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank), part, str(tmp_path / "meet")], text=True, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    if part == "right":
        assert said == ["[]", "[]"]
    elif part == "past":
        assert all("[('replicas', 'FAIL', 0)]" in text for text in said), said
    else:
        assert said[0].startswith("[]") and "not every one of the 2 processes watches" in said[0]


# -- RUN-22 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_statistics_of_a_frozen_part(declared: bool, mode: bool) -> None:
    model = net(norm=True)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False).train(mode)
    spec = {"frozen": ["0", "1"]} if declared else None
    found = train(model, torch.optim.SGD(model[3].parameters(), lr=0.1), spec=spec)
    if mode:
        only(found, "buffers", "FAIL" if declared else "WARN", 0, "1.running_mean", "train mode")
    else:
        assert found == []


def test_statistics_of_a_norm_that_trains_and_masks_of_infinities() -> None:
    model = net(norm=True)
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12) == []


def test_a_buffer_that_becomes_nan() -> None:
    model = net(norm=True)
    poison = lambda step: model(torch.full((4, 8), torch.nan)) if step == 6 else None  # noqa: E731
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 12, after=poison)  # type: ignore[arg-type]
    only(found, "buffers", "FAIL", 7, "1.running_mean is NaN since step 7")
