"""make study-gf16: what GF16 costs in bits per byte, by width, against the seed's "+3.21 below d_model 256".

Arms per width: float32, weights of the feed-forward in GF16, its inputs too; the same model, data, schedule and seeds.
Prints the paired differences with 95 % confidence intervals; writes results/gf16.json and results/gf16.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import studies
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from studies import Arm

WIDTHS = (64, 128, 256, 512)
FORMATS = {
    "float32": {"model.gf16": False},
    "weights": {"model.gf16": True},
    "weights and inputs": {"model.gf16": True, "model.gf16_activations": True},
}
SEED_CLAIM = 3.21


def arms(widths: tuple[int, ...]) -> list[Arm]:
    """Every format at every width; two layers, four heads of a quarter of the width."""
    return [
        Arm(f"{width} {name}".replace(" ", "-"), {"model.d_model": width, **settings})
        for width in widths
        for name, settings in FORMATS.items()
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    options.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    options.add_argument("--data", default="tiny_shakespeare")
    options.add_argument("--folder", type=Path, default=Path("runs/study-gf16"))
    given = options.parse_args()
    common = {
        "steps": given.steps, "data": given.data, "model.nca": False, "model.streams": 1, "ema.enabled": False,
    }  # fmt: skip
    console = Console(stderr=True)
    outcomes = []
    plan = [(arm, seed) for arm in arms(tuple(given.widths)) for seed in given.seeds]
    for done, (arm, seed) in enumerate(plan):
        console.print(f"{done + 1} of {len(plan)}: {arm.name}, seed {seed}")
        outcomes.append(studies.run(arm, seed, given.folder, common))
        studies.keep("gf16", outcomes, common=common, seed_claim=SEED_CLAIM)
    table = Table(title=f"GF16 against float32, {given.steps} steps, seeds {given.seeds}: bits per byte")
    for heading in ("d_model", "float32", "weights in GF16", "inputs too", "the seed says"):
        table.add_column(heading, justify="right")
    points = []
    for width in given.widths:
        plain = f"{width}-float32"
        mean, half = studies.interval(list(studies.losses(outcomes, plain).values()))
        row = [str(width), f"{mean:.4f} ± {half:.4f}"]
        for name in ("weights", "weights-and-inputs"):
            change, about = studies.difference(outcomes, f"{width}-{name}", plain)
            points.append((name, width, change, about))
            row.append(f"{change:+.4f} ± {about:.4f}")
        table.add_row(*row, f"+{SEED_CLAIM}" if width < 256 else "0")
    Console().print(table)
    _plot(points)


def _plot(points: list[tuple[str, int, float, float]]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("weights", "weights-and-inputs"):
        own = [(w, d, h) for n, w, d, h in points if n == name]
        axes.errorbar([w for w, _, _ in own], [d for _, d, _ in own], [h for _, _, h in own], fmt="o-", capsize=4,
                      label=name.replace("-", " "))  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("d_model")
    axes.set_ylabel("bits per byte more than float32 (95 % interval)")
    axes.legend()
    figure.savefig(studies.RESULTS / "gf16.png", dpi=110)


if __name__ == "__main__":
    main()
