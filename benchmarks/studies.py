"""What the studies share: runs of the trainer under strict guards, one after another, each kept; a table; a picture.

A study is a list of arms, each a configuration, and seeds. Every (arm, seed) is one `trainer run` in a folder of its own;
what is finished is not run again, what was interrupted is resumed, so that a study can be stopped and gone on with. The
results are JSON beside this file, written after every run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from karat.core.report import write_text

RESULTS = Path(__file__).parent / "results"
CURVE = 60
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One configuration of a study: its settings as of --set, dotted name -> value."""

    name: str
    settings: Settings
    preset: str | None = None


@dataclass(frozen=True)
class Outcome:
    """One finished run. bpb: of the whole validation part. exit_code 0: every guard held."""

    arm: str
    seed: int
    exit_code: int
    outcome: str
    bpb: float | None
    seconds: float
    tokens: int
    training: list[list[float]] = field(default_factory=list)
    """[steps done, mean loss of the training batches up to there, in bits per token], CURVE points."""
    violations: int = 0
    weights: str = ""


def run(arm: Arm, seed: int, folder: Path, common: Settings) -> Outcome:
    """Trains one arm with one seed in folder/arm-seed, resumes it, or reads what it came to."""
    out = folder / f"{arm.name}-{seed}"
    if not (out / "report.json").is_file():
        _trainer(arm, seed, out, common)
    report = json.loads((out / "report.json").read_text())
    config = report["config"]
    return Outcome(
        arm=arm.name,
        seed=seed,
        exit_code=report["exit_code"],
        outcome=report["outcome"],
        bpb=report["bpb"],
        seconds=sum(report["timing"].values()),
        tokens=report["steps_done"] * config["batch_size"] * config["model"]["context"],
        training=_curve(out / "log.jsonl"),
        violations=len(report["violations"]),
        weights=report["weights"],
    )


def _curve(log: Path) -> list[list[float]]:
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    width = max(1, len(losses) // CURVE)
    return [
        [first + width, round(statistics.fmean(losses[first : first + width]), 4)]
        for first in range(0, len(losses) - width + 1, width)
    ]


def _trainer(arm: Arm, seed: int, out: Path, common: Settings) -> None:
    command = [sys.executable, "-m", "karat.trainer"]
    if (out / "config.toml").is_file():
        command += ["resume", str(out)]
    else:
        command += ["run", "--quiet", "--strict-invariants", "--out", str(out)]
        command += ["--preset", arm.preset] if arm.preset else []
        for key, value in {**common, **arm.settings, "seed": seed}.items():
            command += ["--set", f"{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if not (out / "report.json").is_file():
        raise SystemExit(f"{arm.name}, seed {seed}: the run ended with {done.returncode} and left no report in {out}")


def keep(name: str, outcomes: Sequence[Outcome], **more: Any) -> Path:
    """Writes benchmarks/results/NAME.json: the raw numbers, the machine, and what else is given."""
    record = {
        "study": name,
        "made": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        **more,
        "runs": [vars(outcome) for outcome in outcomes],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What the numbers were measured on, sgemm rate included (GFLOP/s, 2048 x 1024 x 1024, best of ten)."""
    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "sgemm_gflops": round(2 * 2048 * 1024 * 1024 / best / 1e9, 1),
    }


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width) of Student's confidence interval; infinite for fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread


def losses(outcomes: Sequence[Outcome], arm: str) -> dict[int, float]:
    """Seed -> bits per byte of an arm's finished runs."""
    return {o.seed: o.bpb for o in outcomes if o.arm == arm and o.bpb is not None}


def difference(outcomes: Sequence[Outcome], arm: str, against: str) -> tuple[float, float]:
    """(mean, half width) of the paired difference in bits per byte, seed by seed."""
    ours, theirs = losses(outcomes, arm), losses(outcomes, against)
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
