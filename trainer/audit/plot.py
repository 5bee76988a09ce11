"""The picture of an audit: the logged learning rate against the declared and the reconstructed schedule."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from karat.core.errors import StorageError
from karat.invariants.run.audit import Audit
from karat.invariants.run.lr_checks import declared_shapes, rates

POINTS = 1500


def plot_audit(audit: Audit, path: Path) -> bool:
    """Writes the picture; False when the log has no rate to draw. StorageError when it cannot be written."""
    points = rates(audit.log)
    if not points:
        return False
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    last = points[-1][0]
    grid = [last * k / POINTS for k in range(POINTS + 1)]
    declared = declared_shapes(audit.intent)[:1]
    if declared:
        axes.plot(grid, [declared[0].rate(s) for s in grid], "--", color="grey", label="declared")
    if audit.fit is not None:
        label = "reconstructed" if audit.fit.holds else "nearest known schedule, does not fit"
        axes.plot(
            grid, [audit.fit.shape.rate(s) for s in grid], linewidth=1, label=f"{label}: {audit.fit.shape.family}"
        )
    axes.plot([s for s, _ in points], [lr for _, lr in points], "o", markersize=4, color="black", label="logged")
    if audit.intent.total_steps is not None and audit.intent.total_steps <= last:
        axes.axvline(audit.intent.total_steps, color="firebrick", linewidth=1, label="declared total_steps")
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    figure.legend(loc="outside upper center", ncols=2)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}", required="a folder that can be written"
        ) from error
    return True
