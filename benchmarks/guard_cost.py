"""What `watch(model, optimizer)` costs a training step: python benchmarks/guard_cost.py [--log] [--json FILE].

Three copies of a model train in one process, on one thread, in short blocks of steps that take turns: one with the guards,
attached once, two without; the second of these is the control. All is CPU time of the process.

Steps are of a kind, by how much is looked at in them (watching/loop.py), and of each kind the median over the rounds is
taken of what a step with guards takes beyond the bare one of its round. `steady`: that of the steps from 64 on in which the
outputs are not looked at, those between two looks, the last before one, and those in which the checks take turns, each as
often as it comes in 500 steps; `middle half`, of the ratios of those between. `over 500`: the same with everything else
spread over 500 steps: `start`, what steps 0 to 63 take, with the probes of step 0; `looks`, the looks at the outputs. The
probes of step 500 belong to the next 500. `attach` is the call of watch; it happens once and is not in it. Where the
control is off by more than the target, the verdict is noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from subjects import SUBJECTS, Subject, layers
from torch import nn

from karat.core.policy import Policy
from karat.core.report import write_text
from karat.invariants.run.cadence import SETTLED
from karat.invariants.run.spec import Spec
from karat.invariants.runtime import preflight, watch
from karat.invariants.runtime.watching.loop import Loop

STEPS, SECONDS = 500, 0.02
"""Steps of each copy, and about how many seconds of CPU a block takes."""
LONG_STEP, SHORT_STEP = 10e-3, 2e-3
"""Seconds: from the first on the lower target holds, at the second and below the higher one, in between the line."""
LONG_TARGET, SHORT_TARGET = 0.02, 0.05

Attach = Callable[..., Any]


class Silent:
    """Guards that are not there."""

    def log(self, **metrics: Any) -> None:
        """Takes nothing."""

    def finish(self) -> None:
        """Ends nothing."""


def guards_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """The always-on guards, as one line attaches them."""
    return watch(model, optimizer, policy="observe", say=lambda text: None)


def guards_off(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """No guards."""
    return Silent()


ATTACH: dict[str, Attach] = {"watch": guards_on, "none": guards_off}


class Training:
    """One copy of a model in training. attach: CPU seconds that attaching its guards took."""

    def __init__(self, subject: Subject, attach: Attach, log: bool) -> None:
        torch.manual_seed(0)
        self.model = subject.build()
        self.batches = itertools.cycle(subject.batches())
        # so small a rate that thousands of steps leave the loss, and with it the arithmetic, as it was
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-7)
        self.log = log
        began = time.process_time()
        self.guards = attach(self.model, self.optimizer)
        self.attach = time.process_time() - began

    def block(self, steps: int) -> float:
        """CPU seconds of so many steps."""
        began = time.process_time()
        self._train(self.guards, steps)
        return time.process_time() - began

    def _train(self, guards: Any, steps: int) -> None:
        for _ in range(steps):
            inputs, targets = next(self.batches)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.log:
                guards.log(loss=loss.detach())


@dataclass(frozen=True)
class Cost:
    """What was measured of one model; ratios are of paired blocks, seconds are of one step, of start and looks of all."""

    name: str
    parameters: int
    weights: int
    steps: int
    attach: float
    step: float
    guards: float
    start: float
    looks: float
    ratio: float
    low: float
    high: float
    control: float
    target: float

    @property
    def whole(self) -> float:
        """Ratio over all steps: the steady one, and the start and the later looks spread over them."""
        return self.ratio + (self.start + self.looks) / self.steps / self.step

    @property
    def verdict(self) -> str:
        """Whether both ratios are within the target; noise where two equal blocks differ by more than the target."""
        if abs(self.control - 1) > self.target:
            return "noise"
        if self.whole <= 1 + self.target:
            return "yes"
        return "steady" if self.ratio <= 1 + self.target else "no"


def target_of(step: float) -> float:
    """Share of a step of so many seconds that the guards may take."""
    along = min(1.0, max(0.0, (step - SHORT_STEP) / (LONG_STEP - SHORT_STEP)))
    return SHORT_TARGET + along * (LONG_TARGET - SHORT_TARGET)


def cadence() -> Callable[[int], str]:
    """Step -> how much the guards look at in it: all, the outputs, all that takes turns (at the start and later), little; eve:
    little, and what the next step is compared with."""
    model = nn.Linear(1, 1)
    loop = Loop(model, [torch.optim.SGD(model.parameters())], Spec(), Policy.OFF, STEPS, lambda text: None, None)

    def kind_of(step: int) -> str:
        if loop.dense(step):
            return "dense"
        if loop.looked(step):
            return "look"
        if loop.between(step):
            return "between" if step < SETTLED or loop.between(step + 1) else "eve"
        return "start" if step < SETTLED else "turn"

    return kind_of


def measure(subject: Subject, attach: Attach, log: bool, steps: int = STEPS) -> Cost:
    """Times blocks of the three copies in turn, in an order that changes from round to round, up to step `steps`."""
    kinds = {"on": Training(subject, attach, log), "off": Training(subject, guards_off, log),
             "control": Training(subject, guards_off, log)}  # fmt: skip
    warm = Training(subject, guards_off, log)
    warm.block(4)
    size = max(1, round(SECONDS * 4 / warm.block(4)))
    times: dict[str, list[tuple[str, int, float]]] = {name: [] for name in kinds}
    orders = itertools.cycle(itertools.permutations(kinds))
    done = 0
    kind_of = cadence()
    while done < steps:
        count = 1
        kind = kind_of(done)
        if kind == "between":
            count = next(n for n in range(1, size + 1) if n == size or kind_of(done + n) != kind or done + n >= steps)
        for name in next(orders):
            times[name].append((kind, count, kinds[name].block(count) / count))
        done += count
    kinds["on"].guards.finish()
    between = {name: [s for kind, _, s in rows if kind == "between"] for name, rows in times.items()}
    ratios = [on / off for on, off in zip(between["on"], between["off"], strict=True)]
    bare = statistics.median(between["off"])
    low, _, high = statistics.quantiles(ratios, n=4)
    extra: dict[str, list[float]] = {}
    for (kind, _, on), (_, _, off) in zip(times["on"], times["off"], strict=True):
        extra.setdefault(kind, []).append(on - off)
    typical = {kind: statistics.median(seen) for kind, seen in extra.items()}
    often = Counter(map(kind_of, range(steps)))
    steady = ("between", "eve", "turn")
    usual = sum(often[kind] * typical[kind] for kind in steady) / sum(often[kind] for kind in steady)
    return Cost(
        name=subject.name,
        parameters=len(list(warm.model.parameters())),
        weights=sum(p.numel() for p in warm.model.parameters()),
        steps=steps,
        attach=kinds["on"].attach,
        step=bare,
        guards=usual,
        start=sum(extra["dense"][:3]) + often["start"] * typical["start"] - (3 + often["start"]) * usual,
        looks=sum(extra["dense"][3:]) + often["look"] * (typical["look"] - usual),
        ratio=1 + usual / bare,
        low=low,
        high=high,
        control=statistics.median(a / b for a, b in zip(between["control"], between["off"], strict=True)),
        target=target_of(bare),
    )


def preflight_seconds() -> tuple[float, int]:
    """Wall seconds of preflight on a model of about five million weights, and how many those are."""
    torch.manual_seed(0)
    model = layers(1024, 1536, 1536, 784, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = (torch.randn(32, 1024), torch.randint(10, (32,)))
    began = time.perf_counter()
    preflight(model, batch, lambda m, b: F.cross_entropy(m(b[0]), b[1]), optimizer, spec={"classes": 10})
    return time.perf_counter() - began, sum(p.numel() for p in model.parameters())


def table_of(costs: list[Cost]) -> Table:
    """A row to each model."""
    table = Table(title="The always-on guards, nothing declared", title_justify="left")
    for name in ("model", "tensors", "weights", "step ms", "guards us", "steady", "middle half", "control", "attach ms",
                 "start ms", "looks ms", "over 500", "target", "met"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("model", "met") else "right")
    for c in costs:
        table.add_row(
            c.name, str(c.parameters), f"{c.weights:,}", f"{c.step * 1e3:.2f}", f"{c.guards * 1e6:.0f}", f"{c.ratio:.4f}",
            f"{c.low:.3f} to {c.high:.3f}", f"{c.control:.4f}", f"{c.attach * 1e3:.1f}", f"{c.start * 1e3:.0f}",
            f"{c.looks * 1e3:.0f}", f"{c.whole:.4f}", f"{1 + c.target:.3f}", c.verdict,
        )  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit code is 0, because a shared machine's noise is no verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attach", choices=list(ATTACH), default="watch", help="none: the benchmark's own error")
    parser.add_argument("--log", action="store_true", help="the loop also calls guards.log(loss=loss)")
    parser.add_argument("--only", metavar="NAME", default="", help="models whose name contains this")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each copy (default {STEPS}, at least 128)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    costs = [
        measure(s, ATTACH[options.attach], options.log, max(options.steps, 2 * SETTLED))
        for s in SUBJECTS
        if options.only in s.name
    ]
    seconds, weights = preflight_seconds()
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table_of(costs))
    console.print(f"preflight of a model of {weights:,} weights, batch 32: {seconds:.2f} s")
    if options.json:
        found = {"kind": "karat guard cost", "torch": torch.__version__, "python": platform.python_version(),
                 "attach": options.attach, "log": options.log, "preflight_seconds": seconds,
                 "costs": [asdict(c) | {"over": c.whole, "met": c.verdict} for c in costs]}  # fmt: skip
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
