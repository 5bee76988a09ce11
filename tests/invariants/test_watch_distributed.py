"""watch in several processes (gloo, two ranks): clean runs end clean, bugs are found, and no rank waits for a guard."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from karat.invariants.runtime import watch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"),
]
RANKS, STEPS, SECONDS = 2, 9, 60


class Gathering(nn.Module):
    """A forward in which the ranks wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        mean = hidden.detach().mean(0)
        dist.all_reduce(mean)
        return self.last(hidden - mean / RANKS)  # type: ignore[no-any-return]


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gathering":
        return DistributedDataParallel(Gathering())
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
    if kind == "sharded":
        mesh = init_device_mesh("cpu", (RANKS,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    return DistributedDataParallel(model)


def run(kind: str, watched: str, bug: str, rank: int, port: int, folder: str) -> None:
    """One rank: trains, and writes what its guards found and what its weights are."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    trace = os.open(Path(folder, f"{rank}.trace"), os.O_CREAT | os.O_WRONLY)
    faulthandler.dump_traceback_later(SECONDS - 10, file=trace)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    model = made(kind)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    mine = watched == "all" or (watched == "first" and rank == 0)
    guards = watch(model, optimizer, policy="observe", every=4) if mine else None
    torch.manual_seed(rank)
    for step in range(STEPS):
        source = torch.Generator().manual_seed(10 * step + rank)
        x, y = torch.randn(6, 8, generator=source), torch.randint(0, 4, (6,), generator=source)
        if not (bug == "stale" and step == 6):
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss * float("inf") if bug == "infinite" and step == 6 else loss).backward()
        if bug == "apart" and rank == 1:
            with torch.no_grad():
                next(model.parameters()).add_(0.01)
        optimizer.step()
    report = guards.finish() if guards is not None else None
    found = [[v.slug, v.severity, v.step] for v in report.violations] if report is not None else []
    unseen = sorted(report.not_checked) if report is not None else []
    local = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    weights = [p.detach().flatten().tolist() for p in local]
    Path(folder, f"{rank}.json").write_text(json.dumps({"found": found, "not_checked": unseen, "weights": weights}))
    dist.destroy_process_group()


def ranks(folder: Path, kind: str, watched: str = "all", bug: str = "") -> list[dict[str, Any]]:
    """What each rank wrote. Ranks that hang are started once more: gloo's do now and then, with no guard on any, while a
    guard that calls a forward or waits for another rank does it each time. Where both hang, it is told where."""
    for attempt in ("first", "second"):
        tried = folder / attempt
        tried.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        given = [(kind, watched, bug, rank, port, str(tried)) for rank in range(RANKS)]
        several = [context.Process(target=run, args=each, daemon=True) for each in given]
        for process in several:
            process.start()
        for process in several:
            process.join(SECONDS)
        hanging = [process for process in several if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        if not hanging:
            break
    traces = "\n".join((tried / f"{rank}.trace").read_text() for rank in range(RANKS))
    assert [process.exitcode for process in several] == [0] * RANKS, traces
    return [json.loads((tried / f"{r}.json").read_text()) for r in range(RANKS)]


@pytest.mark.parametrize("kind", ["parallel", "sharded", "gathering"])
def test_a_clean_run_is_the_same_watched_and_ends_without_a_fail(kind: str, tmp_path: Path) -> None:
    alone = ranks(tmp_path / "alone", kind, watched="none")
    watched = ranks(tmp_path / "watched", kind)
    assert [r["weights"] for r in watched] == [r["weights"] for r in alone]
    assert not [v for r in watched for v in r["found"] if v[1] == "FAIL"]


@pytest.mark.parametrize("kind", ["parallel", "sharded", "gathering"])
def test_one_rank_alone_may_be_watched(kind: str, tmp_path: Path) -> None:
    first, second = ranks(tmp_path / "ranks", kind, watched="first")
    assert not [v for v in first["found"] if v[1] == "FAIL"] and not second["found"]


@pytest.mark.parametrize(
    ("kind", "bug", "slug"), [("parallel", "stale", "gradient-fresh"), ("sharded", "infinite", "finite")]
)
def test_a_bug_is_found_on_each_rank(kind: str, bug: str, slug: str, tmp_path: Path) -> None:
    for rank in ranks(tmp_path / "ranks", kind, bug=bug):
        assert [slug, "FAIL", 6] in rank["found"]


def test_what_cannot_be_seen_of_shards_is_named(tmp_path: Path) -> None:
    for rank in ranks(tmp_path / "ranks", "sharded"):
        assert {"gradient-fresh", "causality"} <= set(rank["not_checked"])


def test_ranks_that_drift_apart_are_found(tmp_path: Path) -> None:
    found = [v[:2] for rank in ranks(tmp_path / "ranks", "parallel", bug="apart") for v in rank["found"]]
    assert ["replicas", "FAIL"] in found
