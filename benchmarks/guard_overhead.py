"""What the guards cost: the step time of the Micro model with every guard on, over the same run with guards off.

One process, one model, blocks of steps with guards on and off in turn, so that the machine's drift cancels. The time of
`monitor.check` with its probes is also measured on its own. Every step is guarded; nothing is sampled.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from karat.core.observation import Phase
from karat.core.policy import Policy
from karat.trainer.config_file import read_config
from karat.trainer.console import Console
from karat.trainer.loop import _demand_finite, _gradient
from karat.trainer.opening import open_session
from karat.trainer.readings import before_step
from karat.trainer.session import Session

MICRO = ["model.n_layers=4", "model.d_model=256", "model.d_ff=1024", "model.n_heads=4", "model.context=128",
         "batch_size=8", "steps=100000", "threads=2"]  # fmt: skip
BLOCKS, BLOCK = 16, 6


def one_step(session: Session, step: int, guarded: bool) -> tuple[float, float]:
    """(seconds of the step, seconds of them spent in the guards)."""
    start = time.perf_counter()
    for group in session.optimizer.param_groups:
        group["lr"] = session.config.schedule(step)
    losses, norm = _gradient(session, step)
    before = time.perf_counter()
    if guarded:
        session.monitor.check(Phase.BEFORE_STEP, step, before_step(session, step, losses))
    after = time.perf_counter()
    _demand_finite(session, step, losses, norm)
    session.optimizer.step()
    return time.perf_counter() - start, after - before


def main() -> None:
    """Prints medians and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(None, MICRO, policy=Policy.OBSERVE)
        session = open_session(config, Path(folder), Console(quiet=True))
        times: dict[bool, list[float]] = {True: [], False: []}
        inside: list[float] = []
        step = 0
        for block in range(BLOCKS + 1):
            for guarded in (True, False) if block % 2 else (False, True):
                for _ in range(BLOCK):
                    seconds, guards = one_step(session, step, guarded)
                    step += 1
                    if block:  # the first block warms up
                        times[guarded].append(seconds)
                        if guarded:
                            inside.append(guards)
        on, off = statistics.median(times[True]), statistics.median(times[False])
        best_on, best_off = min(times[True]), min(times[False])
        print(
            f"Micro model with mHC, GF16 and NCA, batch 8 x 128, {torch.get_num_threads()} threads, guards every step"
        )
        print(f"  guards off   median {off * 1e3:7.1f} ms   best {best_off * 1e3:7.1f} ms")
        print(f"  guards on    median {on * 1e3:7.1f} ms   best {best_on * 1e3:7.1f} ms")
        print(f"  ratio        median {on / off:7.4f}      best {best_on / best_off:7.4f}")
        print(
            f"  inside the guards: median {statistics.median(inside) * 1e3:.2f} ms, "
            f"{statistics.median(inside) / off:.2%} of a step"
        )


if __name__ == "__main__":
    main()
