"""make study-optim: AdamW, Lion, Muon with AdamW, Muon with Lion, each at its own best rate, at equal steps and equal time.

The same small search for each: the rates of a grid, one seed, a short run, judged on a part of the training text that is
kept from training; the best goes on to the seeds. Equal steps: all take as many. Equal time: each takes the steps that
fit into what AdamW's take. Prints the table; writes results/optim.json and results/optim.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import studies
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from studies import Arm, Outcome

from karat.trainer.data.corpus import load_corpus

GRIDS: dict[str, list[dict[str, object]]] = {
    "adamw": [{"optim.lr": lr} for lr in (0.001, 0.002, 0.004, 0.008)],
    "lion": [{"optim.lr": lr} for lr in (0.0002, 0.0005, 0.001, 0.002)],
    "muon": [{"optim.matrix_lr": lr, "optim.lr": 0.003} for lr in (0.005, 0.01, 0.02, 0.04)],
    "muon+lion": [{"optim.matrix_lr": lr, "optim.lr": 0.0005} for lr in (0.005, 0.01, 0.02, 0.04)],
}
COMMON = {
    "model.streams": 1, "model.gf16": False, "model.nca": False, "model.start": "gpt", "model.qk_norm": True,
    "model.zero_outputs": True, "model.norm": "rmsnorm", "model.d_model": 192, "model.n_layers": 3,
    "model.context": 128, "batch_size": 16, "lr_band.n": "nearest", "ema.enabled": False,
}  # fmt: skip


def tuning_text(data: str, folder: Path) -> tuple[Path, Path]:
    """The training part in two files: nine tenths to train the search on, one to judge it by. Validation is not in them."""
    text = load_corpus(data, context=128).train.tobytes()
    cut = len(text) * 9 // 10
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder / "search-train.txt", folder / "search-judge.txt"
    for path, part in zip(parts, (text[:cut], text[cut:]), strict=True):
        path.write_bytes(part)
    return parts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--search-steps", type=int, default=200)
    options.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    options.add_argument("--data", default="tiny_shakespeare")
    options.add_argument("--folder", type=Path, default=Path("runs/study-optim"))
    given = options.parse_args()
    console = Console(stderr=True)
    train, judge = tuning_text(given.data, given.folder)
    search = {**COMMON, "steps": given.search_steps, "data": str(train), "validation": str(judge)}
    best: dict[str, dict[str, object]] = {}
    searched: list[Outcome] = []
    for name, grid in GRIDS.items():
        tried = []
        for number, rates in enumerate(grid):
            console.print(f"search: {name}, {rates}")
            arm = Arm(f"search-{name}-{number}", {"optim.name": name, **rates})
            tried.append((studies.run(arm, 42, given.folder, search), rates))
        searched += [outcome for outcome, _ in tried]
        finite = [(o.bpb, i) for i, (o, _) in enumerate(tried) if o.bpb is not None]
        best[name] = tried[min(finite)[1]][1]
    outcomes: list[Outcome] = []
    whole = {**COMMON, "data": given.data}
    per_step: dict[str, float] = {}
    for name, rates in best.items():
        for seed in given.seeds:
            console.print(f"equal steps: {name}, seed {seed}, {rates}")
            arm = Arm(f"{name}-steps", {"optim.name": name, **rates, "steps": given.steps})
            outcomes.append(studies.run(arm, seed, given.folder, whole))
        per_step[name] = min(o.seconds for o in outcomes if o.arm == f"{name}-steps") / given.steps
        studies.keep("optim", outcomes, search=[vars(o) for o in searched], best=best)
    for name, rates in best.items():
        steps = round(given.steps * per_step["adamw"] / per_step[name])
        for seed in given.seeds:
            console.print(f"equal time: {name}, seed {seed}, {steps} steps")
            arm = Arm(f"{name}-time", {"optim.name": name, **rates, "steps": steps})
            outcomes.append(studies.run(arm, seed, given.folder, whole))
        studies.keep("optim", outcomes, search=[vars(o) for o in searched], best=best)
    table = Table(title=f"Optimizers, seeds {given.seeds}: bits per byte of the whole validation part")
    for heading in ("optimizer", "rates", "equal steps", "equal time", "seconds a step"):
        table.add_column(heading)
    for name, rates in best.items():
        cells = []
        for kind in ("steps", "time"):
            mean, half = studies.interval(list(studies.losses(outcomes, f"{name}-{kind}").values()))
            cells.append(f"{mean:.4f} ± {half:.4f}")
        table.add_row(name, ", ".join(f"{k} {v}" for k, v in rates.items()), *cells, f"{per_step[name]:.3f}")
    Console().print(table)
    _plot(outcomes)


def _plot(outcomes: list[Outcome]) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(both, ("steps", "time"), strict=True):
        for i, name in enumerate(GRIDS):
            for number, o in enumerate(o for o in outcomes if o.arm == f"{name}-{kind}"):
                x = [step if kind == "steps" else step / o.training[-1][0] * o.seconds for step, _ in o.training]
                axes.plot(x, [loss for _, loss in o.training], color=f"C{i}", linewidth=0.8,
                          label=name if number == 0 else None)  # fmt: skip
        axes.set_xlabel("steps" if kind == "steps" else "seconds")
    both[0].set_ylabel("training batches, bits per byte")
    both[0].legend()
    figure.savefig(studies.RESULTS / "optim.png", dpi=110)


if __name__ == "__main__":
    main()
