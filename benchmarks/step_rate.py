"""How much of the machine's matrix-product rate a training step reaches: python benchmarks/step_rate.py.

The Micro model (4 layers, d_model 256, d_ff 1024, 4 heads, batch 8, sequence 128, ReLU², float32, 2
threads), timed as a loop would run it: forward, backward, gradient clipping, fused AdamW. Counted are the
multiply-adds of every matrix product, two operations each, backward as twice the forward; norms, softmax,
loss and optimizer count nothing, so the fraction is a lower bound on how busy the units are. The yardstick
is torch's own float32 product of 1024 x 1024 matrices, measured between the steps of the same process,
because the machine's speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.next_token import head_loss
from karat.trainer.optim import build

THREADS, BATCH, LENGTH = 2, 8, 128
ROUNDS, STEPS_PER_ROUND = 12, 3
SIDE, PRODUCTS_PER_ROUND = 1024, 8


@dataclass(frozen=True)
class Rates:
    """Operations per second, one entry per round: the yardstick's and the training step's."""

    sgemm: list[float]
    step: list[float]


def forward_flops(config: ModelConfig, batch: int, length: int) -> int:
    """Operations of every matrix product of one forward pass; attention in full, although half is masked."""
    d, width = config.d_model, config.feedforward_width
    weights = config.n_layers * (4 * d * d + 2 * d * width) + config.vocab * d
    attention = config.n_layers * 2 * length * d  # q k^T and p v, per token
    return 2 * batch * length * (weights + attention)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` single timings of work()."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def training_step(config: ModelConfig) -> Callable[[], object]:
    """A closure that takes one optimizer step on a fixed random batch."""
    model = Transformer(config)
    optimizer = build.build_optimizer(model, build.Rates(lr=1e-3))
    tokens_BT = torch.randint(config.vocab, (BATCH, LENGTH))
    targets_BT = torch.randint(config.vocab, (BATCH, LENGTH))

    def step() -> None:
        output = model(tokens_BT)
        head_loss(output.hidden_BTD, output.head_VD, targets_BT).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(config: ModelConfig) -> Rates:
    """Alternates products and steps for ROUNDS rounds; the best of each round."""
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    step = training_step(config)
    for _ in range(3):
        step()
    flops = 3 * forward_flops(config, BATCH, LENGTH)
    rates = Rates([], [])
    for _ in range(ROUNDS):
        rates.sgemm.append(2 * SIDE**3 / seconds(lambda: torch.mm(a, b, out=out), PRODUCTS_PER_ROUND))
        rates.step.append(flops / seconds(step, STEPS_PER_ROUND))
    return rates


def main() -> None:
    """Prints a row per vocabulary: rates and the achieved fraction, best over best, median over median."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {THREADS} threads, float32, batch {BATCH} x {LENGTH}")
    print("vocab   GFLOP/step  ms/step  step GFLOP/s  sgemm GFLOP/s  fraction best  median")
    for vocab in (4096, 256):
        config = ModelConfig(
            vocab=vocab, d_model=256, n_layers=4, n_heads=4, context=LENGTH, d_ff=1024,
            streams=1, gf16=False, nca=False,
        )  # fmt: skip
        rates = measure(config)
        flops = 3 * forward_flops(config, BATCH, LENGTH)
        best, sgemm = max(rates.step), max(rates.sgemm)
        median = statistics.median(rates.step) / statistics.median(rates.sgemm)
        print(
            f"{vocab:5d}   {flops / 1e9:10.2f}  {1e3 * flops / best:7.1f}  {best / 1e9:12.1f}"
            f"  {sgemm / 1e9:13.1f}  {best / sgemm:13.3f}  {median:6.3f}"
        )


if __name__ == "__main__":
    main()
