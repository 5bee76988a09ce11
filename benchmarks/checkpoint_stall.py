"""How long a save keeps the training step waiting, written at once and written on a thread, in one process in turn.

A model of about 4 million parameters with AdamW's moments and averaged weights. After each save a few steps are taken;
their time tells what the thread takes from them. Sync and background saves alternate, so that a busy machine hits both.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from karat.trainer.checkpoint import CheckpointSaver, Draft, NoRoom, capture_rng, draft
from karat.trainer.models.config import ModelConfig
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer
from karat.trainer.optim.ema import WeightAverage

BATCH, CONTEXT, STEPS = 2, 64, 3


class Training:
    """A run of random bytes: its numbers do not matter, their amount does."""

    def __init__(self) -> None:
        shape = ModelConfig(
            d_model=256, n_layers=5, n_heads=4, context=CONTEXT, d_ff=1024, streams=1, gf16=False, nca=False
        )
        self.objective = TrainingObjective(Transformer(shape), None)
        self.optimizer = build_optimizer(self.objective, Rates(lr=0.001))
        self.average = WeightAverage(self.objective.named_parameters(), lambda step: 0.99, every=50, first=0.99)
        self.random = np.random.default_rng(0)
        self.done = 0

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.objective.parameters())

    def steps(self, count: int) -> float:
        """Takes so many; seconds of each, on average."""
        begun = time.perf_counter()
        for _ in range(count):
            tokens = torch.from_numpy(self.random.integers(0, 256, (BATCH, CONTEXT + 1)))
            self.optimizer.zero_grad(set_to_none=True)
            self.objective(tokens[:, :-1], tokens[:, 1:]).total.backward()
            self.optimizer.step()
            self.average.update(self.done)
            self.done += 1
        return (time.perf_counter() - begun) / count

    def draft(self) -> Draft:
        return draft(
            step=self.done,
            model_state=self.objective.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            extra={"average": self.average.state()},
            rng=capture_rng(),
            config_digest="",
        )


def refused(step: int, error: NoRoom) -> None:
    raise error


def main() -> None:
    """Prints the stall of a save by either way, their ratio, and the memory that the snapshot takes."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rounds", type=int, default=12, help="saves of each kind (default: 12)")
    options.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options.add_argument("--threads", type=int, default=1, help="of torch; the saver's thread comes beside them")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    training = Training()
    training.steps(3)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-stall-", dir=given.folder))
    savers = {
        kind: CheckpointSaver(folder / kind, keep_last=1, background=kind == "background", refused=refused)
        for kind in ("sync", "background")
    }
    stalls: dict[str, list[float]] = {kind: [] for kind in savers}
    steps: dict[str, list[float]] = {kind: [] for kind in savers}
    whole: dict[str, list[float]] = {kind: [] for kind in savers}
    try:
        for number in range(given.rounds + 1):
            for kind, saver in savers.items():
                begun = time.perf_counter()
                saver.save(training.draft())
                stalled = time.perf_counter() - begun
                step = training.steps(STEPS)
                saver.finish()
                if number:  # the first round allocates the snapshot's memory
                    stalls[kind].append(stalled)
                    steps[kind].append(step)
                    whole[kind].append(time.perf_counter() - begun)
    finally:
        shutil.rmtree(folder)
    print(
        f"{training.parameters:,} parameters, {training.draft().size:,} bytes a checkpoint, {given.rounds} saves each, "
        f"{STEPS} steps after each; snapshot {savers['background'].nbytes:,} bytes of memory"
    )
    print("            stall ms (median, worst)   step after it ms   save and steps ms")
    for kind in savers:
        print(
            f"{kind:<11} {1e3 * statistics.median(stalls[kind]):10.1f} {1e3 * max(stalls[kind]):10.1f}"
            f"     {1e3 * statistics.median(steps[kind]):14.1f} {1e3 * statistics.median(whole[kind]):19.1f}"
        )
    ratio = statistics.median(stalls["sync"]) / statistics.median(stalls["background"])
    print(f"stall of a save, sync over background: {ratio:.1f} (ratio of the medians)")


if __name__ == "__main__":
    main()
