"""make study-shakespeare: bits per byte on tiny_shakespeare at a time budget, against plain baselines at the same budget.

The clean split: the first nine tenths train, the last tenth validates, whole, once a run, at its end: no rung, no curve
and no choice looks at it before. The curves are those of the training batches. The steps of a run are what the machine
takes in the budget, by one calibration on training text for all seeds; the schedule ends where the run ends. Beside
the runs: a byte trigram, xz and PPM of several orders, each fitted on the training part alone. The victory gate of the
catalogue (INV-7: three seeds below 1.50) is asked at the end; NOT MET is an answer.
"""

from __future__ import annotations

import argparse
import lzma
import subprocess
import sys
import time
from pathlib import Path

import pyppmd
import studies
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from studies import Arm

from karat.trainer.config_file import read_config
from karat.trainer.console import Console as Quiet
from karat.trainer.data.baseline import trigram_bpb
from karat.trainer.data.corpus import load_corpus
from karat.trainer.loop import precision
from karat.trainer.opening import open_session

SOURCE_BPB, SOURCE_MINUTES = 2.18, 174
"""The seed's best, on a validation file that is a part of its training file, and the 2.9 hours that it took."""
MARGIN = 0.95
"""Of the budget that is planned for steps: the rest is evaluation and reports."""
CALIBRATION = 20
"""Steps that are timed after five to warm up."""
PLAIN = {
    "precision": "float32", "batch_size": 24, "model.streams": 1, "model.gf16": False, "model.nca": False,
    "model.start": "gpt", "model.d_model": 256, "model.n_layers": 4, "model.context": 256, "model.activation": "gelu",
    "model.positions": "learned", "model.qk_gain": 1.0, "qk.power": 0, "model.dropout": 0.1, "optim.lr": 0.001,
    "optim.weight_decay": 0.1, "optim.beta2": 0.99, "optim.schedule": "cosine", "optim.floor": 0.1,
    "lr_band.n": "nearest", "ema.enabled": False,
}  # fmt: skip
"""A plain GPT: GELU, LayerNorm, learned positions, AdamW, cosine, dropout 0.1."""
ARMS = (Arm("karat", {}, preset="shakespeare"), Arm("plain-gpt-adamw", PLAIN))


def step_seconds(arm: Arm, data: str, folder: Path) -> float:
    """What one step of an arm takes here, by some steps on training text; nothing of it is kept."""
    sets = [f"{key}={value}" for key, value in arm.settings.items()]
    config = read_config(None, [*sets, "steps=1000", "policy=off"], preset=arm.preset, data=data, out=folder)
    session = open_session(config, folder, Quiet(quiet=True))
    try:
        started = 0.0
        for step in range(CALIBRATION + 5):
            if step == 5:
                started = time.perf_counter()
            inputs, targets = (torch.from_numpy(part) for part in session.batches.batch_at(step))
            session.optimizer.zero_grad()
            with precision(config):
                losses = session.objective(inputs, targets)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(session.objective.parameters(), 1.0)
            session.optimizer.step()
        return (time.perf_counter() - started) / CALIBRATION
    finally:
        session.log.close()
        session.ledger.close()


def steps_begun(timed: Arm, folder: Path) -> int | None:
    """How many steps the first run of an arm was begun with: all seeds take as many, or the gate could not judge them."""
    begun = sorted(folder.glob(f"{timed.name}-*/config.toml"))
    return read_config(begun[0], []).steps if begun else None


def plain_baselines(data: str) -> dict[str, float]:
    """Bits per byte of the validation part: of a trigram model of the training part, and for xz and PPM (variant H) what
    it adds to the compressed training part."""
    corpus = load_corpus(data, context=256)
    train, held = corpus.train.tobytes(), corpus.validation.tobytes()

    def added(size: object) -> float:
        assert callable(size)
        return 8 * (size(train + held) - size(train)) / len(held)

    def xz(text: bytes) -> int:
        return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))

    def ppm(order: int) -> object:
        return lambda text: len(pyppmd.compress(text, max_order=order, mem_size=256 << 20))

    trigram = trigram_bpb(corpus.train, corpus.validation)
    return {"byte trigram": trigram, "xz": added(xz)} | {
        f"PPM, order {order}": added(ppm(order)) for order in range(4, 9)
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, nargs="+", default=[15, 45])
    options.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    options.add_argument("--data", default="tiny_shakespeare")
    options.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS])
    options.add_argument("--folder", type=Path, default=Path("runs/study-shakespeare"))
    given = options.parse_args()
    console = Console(stderr=True)
    outcomes, plan = [], [(m, a, s) for m in given.minutes for a in ARMS if a.name in given.arms for s in given.seeds]
    baselines = plain_baselines(given.data)
    for done, (minutes, arm, seed) in enumerate(plan):
        timed = Arm(f"{arm.name}-{minutes:g}-minutes", arm.settings, arm.preset)
        steps = steps_begun(timed, given.folder)
        if steps is None:
            per_step = step_seconds(arm, given.data, given.folder / "calibration")
            steps = max(30, int(MARGIN * minutes * 60 / per_step))
            console.print(f"{timed.name}: {steps} steps of {per_step:.3f} s")
        console.print(f"{done + 1} of {len(plan)}: {timed.name}, seed {seed}")
        common = {"data": given.data, "steps": steps, "asha.r0": steps}
        outcomes.append(studies.run(timed, seed, given.folder, common))
        studies.keep(
            "shakespeare", outcomes, baselines=baselines, source={"bpb": SOURCE_BPB, "minutes": SOURCE_MINUTES}
        )
    table = Table(title="tiny_shakespeare, whole validation part, bits per byte")
    for heading in ("model", "seed", "BPB", "minutes", "million tokens", "guards"):
        table.add_column(heading, justify="right")
    for o in outcomes:
        bpb = "none" if o.bpb is None else f"{o.bpb:.4f}"
        held = "held" if o.exit_code == 0 else o.outcome
        table.add_row(o.arm, str(o.seed), bpb, f"{o.seconds / 60:.1f}", f"{o.tokens / 1e6:.2f}", held)
    for name, bpb in baselines.items():
        table.add_row(name, "", f"{bpb:.4f}", "", "", "")
    Console().print(table)
    _plot(outcomes, baselines)
    for arm in dict.fromkeys(o.arm for o in outcomes):
        runs = [str(given.folder / f"{arm}-{seed}") for seed in given.seeds]
        if len(runs) >= 3:
            subprocess.run([sys.executable, "-m", "karat.trainer", "gate", *runs], check=False)


def _plot(outcomes: list[studies.Outcome], baselines: dict[str, float]) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(o.arm for o in outcomes))}
    for o in outcomes:
        last = o.training[-1][0]
        for axes, whole in zip(both, (o.seconds / 60, o.tokens / 1e6), strict=True):
            axes.plot([step / last * whole for step, _ in o.training], [loss for _, loss in o.training],
                      color=colours[o.arm], linewidth=0.9)  # fmt: skip
            if o.bpb is not None:
                axes.plot([whole], [o.bpb], "o", color=colours[o.arm])
    for axes, label in zip(both, ("minutes", "million tokens"), strict=True):
        axes.set_xlabel(label)
        for i, (name, bpb) in enumerate([("xz", baselines["xz"]), min(baselines.items(), key=lambda b: b[1])]):
            axes.axhline(bpb, color="grey", linestyle=("--", ":")[i], linewidth=0.9, label=name)
        axes.axhline(SOURCE_BPB, color="black", linewidth=0.7, label="the seed's best (leaky validation)")
        for arm, colour in colours.items():
            axes.plot([], [], color=colour, label=arm)
    both[0].set_ylabel("bits per byte: training batches; dots: the validation part")
    both[0].legend(fontsize=8)
    figure.savefig(studies.RESULTS / "shakespeare.png", dpi=110)


if __name__ == "__main__":
    main()
