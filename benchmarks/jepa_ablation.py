"""What the JEPA objective buys: python benchmarks/jepa_ablation.py --data FILE [--weights 0 0.25 1] [--seeds 3].

One small model per weight and seed, with equal first weights, batches and schedule; the last tenth of the file is
validation. Printed: bits per byte there, mean and deviation over the seeds, and the difference from weight 0 of the
same seed with its 95 % interval (Student's, so three seeds make it wide). A weight buys something where the interval
excludes 0, and says so; otherwise it says that no difference was seen. Beside it: a linear probe for the next byte on
frozen features of each arm, of an untrained encoder, and of one trained by JEPA alone; how much of the targets'
variance the predictor explains; the spread of the features; and the CPU time of a step, so that what it buys can be
set against what it costs. `--same-time` gives weight 0 as many more steps as the others take longer.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy import stats

from karat.core.formulas import schedule
from karat.core.report import write_text
from karat.trainer.data.batches import Batches
from karat.trainer.evaluate import Validation, bits_per_byte
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaConfig, JepaObjective, JepaOutput
from karat.trainer.objectives.next_token import head_loss
from karat.trainer.optim.build import Rates, build_optimizer

CLIP, FLOOR = 1.0, 0.1
PROBE_BATCHES, PROBE_STEPS, PROBE_LR, PROBE_FIRST = 40, 200, 0.02, 1 << 30
ONLY, UNTRAINED = "JEPA alone", "untrained"


@dataclass(frozen=True)
class Settings:
    """One ablation: what all arms share. Rates per step, lengths in bytes."""

    steps: int
    batch: int
    context: int
    d_model: int
    layers: int
    lr: float
    jepa: JepaConfig

    @property
    def model(self) -> ModelConfig:
        """The plain transformer: no streams, no GF16, so that nothing but the objective is looked at."""
        return ModelConfig(
            d_model=self.d_model,
            n_layers=self.layers,
            n_heads=4,
            context=self.context,
            streams=1,
            gf16=False,
            nca=False,
        )


@dataclass(frozen=True)
class Result:
    """One trained model. Losses in bits per byte, seconds of CPU of the median step; None where an arm has no such number."""

    arm: str
    seed: int
    steps: int
    bpb: float | None
    probe: float
    explained: float | None
    std: float | None
    rank: float | None
    collapsed: bool | None
    step_seconds: float


@dataclass(frozen=True)
class Text:
    """A file's bytes: the last tenth is validation."""

    train: npt.NDArray[np.uint8]
    validation: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Text:
        tokens = np.frombuffer(path.read_bytes(), np.uint8)
        cut = len(tokens) * 9 // 10
        return cls(tokens[:cut], tokens[cut:])


def trained(arm: str, weight: float, seed: int, text: Text, settings: Settings, steps: int) -> Result:
    """Trains one arm: the next-token loss unless it is ONLY, plus `weight` times the objective's where that is not 0."""
    torch.manual_seed(seed)
    model = Transformer(settings.model)
    parts, jepa, output = torch.nn.ModuleDict({"model": model}), None, None
    if weight:
        shape = settings.jepa.model_copy(update={"weight": weight, "warmup": min(settings.jepa.warmup, steps // 5)})
        jepa = JepaObjective(model, shape, steps=steps, seed=seed)
        parts["jepa"] = jepa
    optimizer = build_optimizer(parts, Rates(lr=settings.lr))
    batches = Batches(text.train, settings.context, settings.batch, seed)
    seconds = []
    for step in range(steps):
        started = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = schedule.wsd(step, steps // 20, steps * 6 // 10, steps, settings.lr, FLOOR * settings.lr)
        inputs, targets = map(torch.from_numpy, batches.batch_at(step))
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        if jepa is not None:
            output = jepa(model, inputs, step)
            loss = loss + output.loss
        if arm != ONLY:
            whole = model(inputs)
            loss = loss + head_loss(whole.hidden_BTD, whole.head_VD, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts.parameters(), CLIP)
        optimizer.step()
        if jepa is not None:
            jepa.update_target(step)
        seconds.append(time.process_time() - started)
    validation = Validation(text.validation, len(text.validation))
    bpb = None if arm in (ONLY, UNTRAINED) else bits_per_byte(model, validation, settings.context)
    return _result(
        arm, seed, steps, bpb, probe(model, text, settings, seed), output, statistics.median(seconds or [0.0])
    )


def _result(
    arm: str, seed: int, steps: int, bpb: float | None, probed: float, output: JepaOutput | None, seconds: float
) -> Result:
    if output is None:
        return Result(arm, seed, steps, bpb, probed, None, None, None, None, seconds)
    numbers = (float(output.explained), float(output.online.std), float(output.online.rank))
    return Result(arm, seed, steps, bpb, probed, *numbers, output.collapsed, seconds)


def probe(model: Transformer, text: Text, settings: Settings, seed: int) -> float:
    """Bits per byte of a linear map from frozen features to the next byte, fitted on training text."""

    @torch.no_grad()
    def features(tokens: npt.NDArray[np.uint8], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = Batches(tokens, settings.context, settings.batch, seed)
        pairs = [batches.batch_at(step) for step in range(PROBE_BATCHES)]
        hidden = [model(torch.from_numpy(inputs)).hidden_BTD.flatten(0, 1) for inputs, _ in pairs]
        return torch.cat(hidden), torch.cat([torch.from_numpy(targets).flatten() for _, targets in pairs])

    x, y = features(text.train, PROBE_FIRST + seed)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    linear = torch.nn.Linear(x.shape[1], settings.model.vocab)
    torch.nn.init.zeros_(linear.weight)
    optimizer = torch.optim.Adam(linear.parameters(), lr=PROBE_LR)
    for step in range(PROBE_STEPS):
        part = slice(step % 4, None, 4)
        optimizer.zero_grad()
        F.cross_entropy(linear((x[part] - mean) / std), y[part]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x, y = features(text.validation, PROBE_FIRST + seed)
    with torch.no_grad():
        return float(F.cross_entropy(linear((x - mean) / std), y)) / math.log(2)


def difference(results: Sequence[Result], arm: str, base: str) -> tuple[float, float, str]:
    """Mean difference in bits per byte from `base` of the same seed, half of its 95 % interval, and what follows."""
    bpb = {(r.arm, r.seed): r.bpb for r in results if r.bpb is not None}
    paired = [bpb[arm, r.seed] - bpb[base, r.seed] for r in results if r.arm == arm]
    mean = statistics.mean(paired)
    if len(paired) < 2:
        return mean, math.inf, "one seed: cannot judge"
    half = float(stats.t.ppf(0.975, len(paired) - 1)) * statistics.stdev(paired) / math.sqrt(len(paired))
    if abs(mean) <= half:
        return mean, half, "no difference seen"
    return mean, half, "better" if mean < 0 else "worse"


def table(results: Sequence[Result], base: str) -> Table:
    """A row per arm: means over the seeds, ± one deviation."""
    out = Table(title="JEPA ablation: means over seeds, ± one deviation; bits per byte on held-out text")
    for column in ("arm", "steps", "BPB", "from weight 0 (95 %)", "probe", "explained", "std", "rank", "CPU ms/step"):
        out.add_column(column, justify="left" if column == "arm" else "right")
    for arm in dict.fromkeys(r.arm for r in results):
        rows = [r for r in results if r.arm == arm]
        verdict = ""
        if rows[0].bpb is not None and arm != base:
            mean, half, says = difference(results, arm, base)
            verdict = f"{mean:+.4f} ± {half:.4f} {says}"
        seconds = f"{1e3 * statistics.mean(r.step_seconds for r in rows):.1f}" if rows[0].steps else "-"
        shown = [spread([getattr(r, key) for r in rows]) for key in ("bpb", "probe", "explained", "std", "rank")]
        name = f"{arm} COLLAPSED" if any(r.collapsed for r in rows) else arm
        out.add_row(name, str(rows[0].steps), shown[0], verdict, *shown[1:], seconds)
    return out


def spread(values: Sequence[float | None]) -> str:
    """Mean ± deviation; a dash where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.4f} ± {statistics.stdev(known) if len(known) > 1 else 0:.4f}"


def ablation(text: Text, settings: Settings, weights: Sequence[float], seeds: int, same_time: bool) -> list[Result]:
    """All arms of all seeds; each line of standard error is one finished model."""
    results: list[Result] = []

    def run(arm: str, weight: float, seed: int, steps: int) -> Result:
        result = trained(arm, weight, seed, text, settings, steps)
        print(result, file=sys.stderr, flush=True)
        results.append(result)
        return result

    for seed in range(seeds):
        rows = [run(f"weight {weight:g}", weight, seed, settings.steps) for weight in weights]
        if same_time:
            longer = statistics.mean(r.step_seconds for r in rows[1:]) / rows[0].step_seconds
            run("weight 0, same time", 0.0, seed, round(settings.steps * longer))
        run(ONLY, 1.0, seed, settings.steps)
        run(UNTRAINED, 0.0, seed, 0)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all arms, prints the table and, with --json, writes every number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a text file; its last tenth is validation")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 1.0], help="the first must be 0")
    for name, default in (("seeds", 3), ("steps", 400), ("batch", 16), ("context", 64), ("d-model", 64), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of JepaConfig, as JSON")
    parser.add_argument("--same-time", action="store_true", help="also weight 0 with as much CPU time as the others")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.weights[0] != 0 or len(given.weights) < 2 or min(given.weights) < 0:
        parser.error(f"--weights must be 0 and then positive weights, got {given.weights}")
    changed = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in given.set)}
    jepa = JepaConfig(**{"width": given.d_model, "layers": 1, **changed})
    settings = Settings(given.steps, given.batch, given.context, given.d_model, given.layers, given.lr, jepa)
    results = ablation(Text.read(given.data), settings, given.weights, given.seeds, given.same_time)
    Console().print(table(results, results[0].arm))
    if given.json is not None:
        record = {
            "settings": {**asdict(settings), "jepa": settings.jepa.model_dump()},
            "results": [asdict(result) for result in results],
        }
        write_text(given.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
