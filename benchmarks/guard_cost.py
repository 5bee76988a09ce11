"""What `watch(model, optimizer)` costs a training step: python benchmarks/guard_cost.py [--log] [--json FILE].

One model trains in one process, on one thread, in short blocks of steps that take turns: with the guards, bare, and bare
once more, in every order, each block in CPU time of the process. A ratio is of blocks of one round; shown are the median
over the rounds and the range of the middle half. The second bare block is the control: its ratio says what the machine
makes of two equal blocks, and where it is off by more than the target, the verdict is noise. Attaching and the two steps
after it are not counted (attaching has a column of its own); nor, then, is what happens every few hundred steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
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

from karat.core.report import write_text
from karat.invariants.runtime import preflight, watch

ROUNDS, SECONDS, WARM = 40, 0.08, 2
"""Blocks of each kind, about how many seconds of CPU one takes, and steps before a block."""
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
    """One model in training, to which guards are attached for a block."""

    def __init__(self, subject: Subject, log: bool) -> None:
        torch.manual_seed(0)
        self.model = subject.build()
        self.batches = itertools.cycle(subject.batches())
        # so small a rate that thousands of steps leave the loss, and with it the arithmetic, as it was
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-7)
        self.log = log

    def block(self, attach: Attach, steps: int) -> tuple[float, float]:
        """CPU seconds a step, and CPU seconds of attaching."""
        began = time.process_time()
        guards = attach(self.model, self.optimizer)
        attached = time.process_time()
        self._train(guards, WARM)
        started = time.process_time()
        self._train(guards, steps)
        ended = time.process_time()
        guards.finish()
        return (ended - started) / steps, attached - began

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
    """What was measured of one model; ratios are of paired blocks, seconds are of one step."""

    name: str
    parameters: int
    weights: int
    steps: int
    attach: float
    step: float
    guards: float
    ratio: float
    low: float
    high: float
    control: float
    target: float

    @property
    def verdict(self) -> str:
        """Whether the median is within the target; noise where two equal blocks differ by more than the target."""
        if abs(self.control - 1) > self.target:
            return "noise"
        return "yes" if self.ratio <= 1 + self.target else "no"


def target_of(step: float) -> float:
    """Share of a step of so many seconds that the guards may take."""
    along = min(1.0, max(0.0, (step - SHORT_STEP) / (LONG_STEP - SHORT_STEP)))
    return SHORT_TARGET + along * (LONG_TARGET - SHORT_TARGET)


def measure(subject: Subject, attach: Attach, log: bool, rounds: int = ROUNDS) -> Cost:
    """Times the three kinds of block in turn, in an order that changes from round to round."""
    training = Training(subject, log)
    kinds = {"on": attach, "off": guards_off, "control": guards_off}
    training.block(attach, WARM)
    steps = max(1, round(SECONDS / training.block(guards_off, 4 * WARM)[0]))
    times: dict[str, list[float]] = {name: [] for name in kinds}
    attaching: list[float] = []
    for order in itertools.islice(itertools.cycle(itertools.permutations(kinds)), rounds):
        for name in order:
            step, attached = training.block(kinds[name], steps)
            times[name].append(step)
            if name == "on":
                attaching.append(attached)
    ratios = [on / off for on, off in zip(times["on"], times["off"], strict=True)]
    bare = statistics.median(times["off"])
    low, _, high = statistics.quantiles(ratios, n=4)
    return Cost(
        name=subject.name,
        parameters=len(list(training.model.parameters())),
        weights=sum(p.numel() for p in training.model.parameters()),
        steps=steps * rounds,
        attach=statistics.median(attaching),
        step=bare,
        guards=statistics.median(on - off for on, off in zip(times["on"], times["off"], strict=True)),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        control=statistics.median(a / b for a, b in zip(times["control"], times["off"], strict=True)),
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
    table = Table(title="The always-on guards, every step", title_justify="left")
    for name in ("model", "tensors", "weights", "attach ms", "step ms", "guards us", "ratio", "middle half", "control",
                 "target", "met"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("model", "met") else "right")
    for c in costs:
        table.add_row(
            c.name, str(c.parameters), f"{c.weights:,}", f"{c.attach * 1e3:.1f}", f"{c.step * 1e3:.2f}",
            f"{c.guards * 1e6:.0f}", f"{c.ratio:.4f}", f"{c.low:.3f} to {c.high:.3f}", f"{c.control:.4f}",
            f"{1 + c.target:.3f}", c.verdict,
        )  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit code is 0, because a shared machine's noise is no verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attach", choices=list(ATTACH), default="watch", help="none: the benchmark's own error")
    parser.add_argument("--log", action="store_true", help="the loop also calls guards.log(loss=loss)")
    parser.add_argument("--only", metavar="NAME", default="", help="models whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"blocks of each kind (default {ROUNDS})")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    costs = [
        measure(s, ATTACH[options.attach], options.log, options.rounds) for s in SUBJECTS if options.only in s.name
    ]
    seconds, weights = preflight_seconds()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table_of(costs))
    console.print(f"preflight of a model of {weights:,} weights, batch 32: {seconds:.2f} s")
    if options.json:
        found = {"kind": "karat guard cost", "torch": torch.__version__, "python": platform.python_version(),
                 "attach": options.attach, "log": options.log, "preflight_seconds": seconds,
                 "costs": [asdict(c) | {"met": c.verdict} for c in costs]}  # fmt: skip
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
