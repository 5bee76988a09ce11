"""How fast a training step is: python benchmarks/step_rate.py [--presets …] [--rounds N] [--json FILE].

For each preset: forward, backward, clipping and optimizer on a fixed batch, against a plain, well-written GPT of the same
shape (eager PyTorch, float32: fused queries-keys-values, SDPA, GELU, LayerNorm, tied head, cross-entropy of whole logits,
fused AdamW), and against the machine's float32 product of 1024 x 1024 matrices. They take turns in one process, because
the machine's speed drifts; a round's time is the shortest of its steps, and ratios are medians over the rounds.
Operations are counted by `trainer budget`'s formulas for the forward pass, thrice: attention in full although half is masked,
and nothing for norms, softmax, quantisation and optimizer. So `of sgemm` is a lower bound on how busy the units are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from karat.core.report import write_text
from karat.trainer.budget.formulas import forward_flops
from karat.trainer.budget.terms import total
from karat.trainer.config import RunConfig
from karat.trainer.config_file import read_config
from karat.trainer.loop import precision
from karat.trainer.models.config import ModelConfig
from karat.trainer.opening import objective_of, rates
from karat.trainer.optim.build import build_optimizer as build

THREADS, SIDE, PRODUCTS, STEPS = 2, 1024, 8, 3
Step = Callable[[], None]


@dataclass(frozen=True)
class Speed:
    """Of one preset: tokens a second, times plain GPT's tokens a second, share of the sgemm rate, of optimizer in step."""

    preset: str
    precision: str
    tokens_per_second: float
    against_plain: float
    plain_of_sgemm: float
    of_sgemm: float
    optimizer_share: float
    sgemm_gflops: float


class Block(nn.Module):
    """A block of the plain GPT."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.heads = c.n_heads
        self.before, self.between = nn.LayerNorm(c.d_model, bias=False), nn.LayerNorm(c.d_model, bias=False)
        self.qkv, self.out = (
            nn.Linear(c.d_model, 3 * c.d_model, bias=False),
            nn.Linear(c.d_model, c.d_model, bias=False),
        )
        width = c.feedforward_width * 3 // 2 if c.activation == "swiglu" else c.feedforward_width
        self.up, self.down = nn.Linear(c.d_model, width, bias=False), nn.Linear(width, c.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        y: Tensor = x + self.down(F.gelu(self.up(self.between(x))))
        return y


class PlainGPT(nn.Module):
    """The same depth, width, context and vocabulary; as many weights in the feed-forward."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(c.vocab, c.d_model), nn.Embedding(c.context, c.d_model)
        self.blocks = nn.Sequential(*(Block(c) for _ in range(c.n_layers)))
        self.norm = nn.LayerNorm(c.d_model, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch_of(config: RunConfig) -> tuple[Tensor, Tensor]:
    shape = (config.batch_size, config.model.context)
    return torch.randint(config.model.vocab, shape), torch.randint(config.model.vocab, shape)


def ours(config: RunConfig) -> tuple[Step, Step]:
    """(a step of the trainer without its guards, its optimizer's part again)."""
    objective, batch = objective_of(config, None), batch_of(config)
    from_config = rates(config)
    optimizer = build(objective, from_config)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(config):
            losses = objective(*batch)
        losses.total.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip)
        optimizer.step()

    return step, lambda: optimizer.step() and None


def plain(config: RunConfig) -> Step:
    model, (inputs, targets) = PlainGPT(config.model), batch_of(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(inputs, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def shortest(work: Step, repeats: int) -> float:
    """The shortest of single timings, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def speed(preset: str, kind: str, rounds: int) -> Speed:
    config = read_config(None, [f"precision={kind}", "model.nca=false"], preset=preset)
    torch.manual_seed(0)
    (step, update), other = ours(config), plain(config)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    times: list[tuple[float, float, float, float]] = []
    for done in range(rounds + 1):
        taken = (
            shortest(lambda: torch.mm(a, b) is None, PRODUCTS), shortest(other, STEPS), shortest(step, STEPS),
            shortest(update, STEPS),
        )  # fmt: skip
        if done:  # the first round warms up
            times.append(taken)
    products = [2 * SIDE**3 / t[0] for t in times]
    operations = 3 * total(term for term in forward_flops(config) if "ahead" not in term.part)
    median = statistics.median
    return Speed(
        preset=preset,
        precision=kind,
        tokens_per_second=round(config.batch_size * config.model.context / median(t[2] for t in times)),
        against_plain=round(median(t[1] / t[2] for t in times), 3),
        plain_of_sgemm=round(median(operations / t[1] / rate for t, rate in zip(times, products, strict=True)), 3),
        of_sgemm=round(median(operations / t[2] / rate for t, rate in zip(times, products, strict=True)), 3),
        optimizer_share=round(median(t[3] / t[2] for t in times), 3),
        sgemm_gflops=round(median(products) / 1e9, 1),
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--presets", nargs="+", default=["nano", "micro", "mini", "ternary-tiny", "shakespeare"])
    options.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    torch.set_num_threads(THREADS)
    table = Table(title=f"a training step, {THREADS} threads; ratios in one process, medians of {given.rounds} rounds")
    for heading in ("preset", "precision", "tokens/s", "times plain GPT", "of sgemm", "plain GPT of sgemm",
                    "optimizer of step", "sgemm GFLOP/s"):  # fmt: skip
        table.add_column(heading, justify="right")
    speeds = []
    for preset in given.presets:
        for kind in given.precisions:
            s = speed(preset, kind, given.rounds)
            speeds.append(asdict(s))
            table.add_row(s.preset, s.precision, f"{s.tokens_per_second:,.0f}", f"{s.against_plain:.2f}",
                          f"{s.of_sgemm:.0%}", f"{s.plain_of_sgemm:.0%}", f"{s.optimizer_share:.0%}",
                          f"{s.sgemm_gflops:.0f}")  # fmt: skip
    Console().print(table)
    if given.json:
        write_text(given.json, json.dumps({"threads": THREADS, "torch": torch.__version__, "speeds": speeds}, indent=1))


if __name__ == "__main__":
    main()
