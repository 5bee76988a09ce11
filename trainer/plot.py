"""The picture of a run: loss, learning rate in its band, and the margins of the guards, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from karat.core.formulas import anchors
from karat.invariants.runtime.ledger import read_rows
from karat.trainer.session import Session


def plot_run(session: Session, baseline: float | None) -> Path | None:
    """Writes run.png from log.jsonl; None when no step was logged."""
    rows = list(read_rows(session.out / "log.jsonl"))
    if not rows:
        return None
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, margins = figure.subplots(3, 1, sharex=True)
    steps = [row["step"] for row in rows]
    _plot_loss(loss, session, steps, rows, baseline)
    _plot_rate(rate, session, steps, rows)
    _plot_margins(margins, session, steps, rows)
    margins.set_xlabel("step")
    path = session.out / "run.png"
    figure.savefig(path, dpi=110)
    return path


def _plot_loss(
    axes: Axes, session: Session, steps: list[int], rows: list[dict[str, Any]], baseline: float | None
) -> None:
    axes.plot(steps, [row["loss"] for row in rows], linewidth=0.8, label="training batch")
    points = [point for point in session.progress.evaluations if point["bpb"] is not None]
    if points:
        axes.plot([p["step"] for p in points], [p["bpb"] for p in points], "o-", label="validation")
    if baseline is not None:
        axes.axhline(baseline, linestyle="--", color="grey", label="byte trigram")
    if session.corpus.synthetic is not None:
        axes.axhline(session.corpus.synthetic.floor / math.log(2), linestyle="--", color="grey", label="floor")
    axes.set_ylabel(session.corpus.unit)
    axes.legend()


def _plot_rate(axes: Axes, session: Session, steps: list[int], rows: list[dict[str, Any]]) -> None:
    low, high = (float(end) for end in anchors.band(session.config.band.n, session.config.band.k))
    axes.axhspan(low, high, alpha=0.15, color="goldenrod", label="INV-8 band")
    axes.plot(steps, [max(row["lr"]) for row in rows], label="learning rate")
    axes.set_ylabel("learning rate")
    axes.legend()


def _plot_margins(axes: Axes, session: Session, steps: list[int], rows: list[dict[str, Any]]) -> None:
    for name in session.monitor.guards:
        points = [(step, row["margins"].get(name)) for step, row in zip(steps, rows, strict=True)]
        numbers = [(s, m) for s, m in points if isinstance(m, (int, float)) and math.isfinite(m) and m > 0]
        if numbers:
            axes.plot([s for s, _ in numbers], [m for _, m in numbers], linewidth=0.9, label=name)
    axes.set_ylabel("margin to the nearest bound")
    if axes.lines:
        axes.set_yscale("log")
        axes.legend()
