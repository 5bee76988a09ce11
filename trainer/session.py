"""Everything that one run holds, and what of it a checkpoint keeps. How it is made: opening.py."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from karat.core.report import ProofStatus
from karat.invariants import inv08_lr_band as inv08
from karat.invariants.plugins import Plugin
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.monitor import Monitor
from karat.trainer.checkpoint import (
    CheckpointSaver,
    Draft,
    Meta,
    NoRoom,
    capture_rng,
    draft,
    measured,
)
from karat.trainer.checkpoint.retention import BEST
from karat.trainer.config import RunConfig
from karat.trainer.console import Console
from karat.trainer.data.batches import Batches
from karat.trainer.data.corpus import Corpus
from karat.trainer.evaluate import Validation
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa_collapse import CollapseWatch
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.ema import WeightAverage

REFUSED = "checkpoint refused"
"""The ledger's event of a checkpoint for which there was no room."""


@dataclass
class Progress:
    """What a run has found out so far; it travels in the checkpoint, so that a report covers the whole run."""

    step: int = 0
    last_loss: float | None = None
    first_loss: float | None = None
    after_step_due: bool = False
    rungs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """The step losses that INV-1 still looks at, in bits per byte: at most two windows of them."""
    collapsed: list[str] = field(default_factory=list)
    """What was said of T-JEPA's features when they collapsed."""


@dataclass
class Session:
    """One run. `out` is its folder; `proofs` is what is proved of the guards that are on duty."""

    config: RunConfig
    out: Path
    corpus: Corpus
    validation: Validation
    batches: Batches
    objective: TrainingObjective
    optimizer: torch.optim.Optimizer
    monitor: Monitor
    proofs: tuple[ProofStatus, ...]
    ledger: Ledger
    log: Ledger
    console: Console
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)
    started: float = field(default_factory=time.perf_counter)
    collapse: CollapseWatch | None = None
    """Looks at the spread of T-JEPA's features; None without T-JEPA."""
    plugins: tuple[Plugin, ...] = ()
    """Those of other packages that are on duty; none when the policy is OFF."""

    @property
    def model(self) -> Transformer:
        return self.objective.model

    @property
    def band(self) -> inv08.Band:
        """The band that INV-8 is on duty with."""
        band: inv08.Band = self.monitor.guards["INV-8"].parameters
        return band

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @cached_property
    def saver(self) -> CheckpointSaver:
        """What writes the run's checkpoints; made at the first use, when the folder is this run's."""
        settings = self.config.checkpoint
        return CheckpointSaver(
            self.checkpoints,
            keep_last=settings.keep_last,
            keep_best=settings.keep_best,
            background=settings.background,
            refused=self._refused,
            say=self.console.warn,
        )

    def save(self, name: str | None = None) -> None:
        """Writes a checkpoint of the state before step `progress.step`; `best`, too, when this state is the best."""
        self.saver.save(self._draft(), name)

    def save_best(self) -> None:
        """The same under the name `best` alone, if the state's evaluation was the lowest and it was not saved since."""
        if self.saver.best_due:
            self.save(BEST)

    def evaluated(self, bpb: float) -> None:
        """Takes note of the validation loss of the present state, in bits per byte."""
        finite, step = bpb if math.isfinite(bpb) else None, self.progress.step
        before = [row for row in self.progress.evaluations if row["step"] != step]  # a resumed run may judge it again
        row = {"step": step, "bpb": finite, "seconds": round(self.elapsed(), 3)}
        self.progress.evaluations = [*before, row]
        self.saver.evaluated(step, finite)

    def _draft(self) -> Draft:
        """The whole state, as a checkpoint will hold it."""
        return draft(
            step=self.progress.step,
            model_state=self.objective.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            extra={
                "progress": {**vars(self.progress), "seconds": self.elapsed()},
                "monitor": self.monitor.state(),
                "average": self.average.state() if self.average is not None else None,
                "duty": self.duty(),
                "data": self.corpus.manifest.digest,
                "judged_by": self.validation.text,
                "data_position": self.progress.step,
                "learning_rate": self.config.schedule(self.progress.step),
            },
            rng=capture_rng(),
            config_digest=self.config.digest,
            settings=self.config.trajectory,
            meta=self._meta(),
        )

    def _meta(self) -> Meta:
        progress = self.progress
        last: dict[str, Any] = progress.evaluations[-1] if progress.evaluations else {"bpb": None, "step": 0}
        groups = enumerate(self.optimizer.param_groups)
        return Meta(
            step=progress.step,
            training_loss=measured(progress.last_loss, progress.step - 1),
            validation_loss=measured(last["bpb"], last["step"]),
            learning_rates={str(group.get("name", number)): float(group["lr"]) for number, group in groups},
            seconds=round(self.elapsed(), 3),
            parameters=sum(parameter.numel() for parameter in self.objective.parameters()),
            config_digest=self.config.digest,
            data_digest=self.corpus.manifest.digest,
        )

    def _refused(self, step: int, error: NoRoom) -> None:
        """A checkpoint that was not written is told, and stays on record: the report reads it from the ledger."""
        self.console.warn(f"{error.seen}\n  required  {error.required}\n  next      {error.next_step}")
        row = {"event": REFUSED, "phase": "saving", "step": step, "checkpoint": error.target.name}
        self.ledger.write({**row, "needed": error.needed, "free": error.free, "reason": error.seen})

    def duty(self) -> dict[str, str]:
        """The policy and what each guard requires: what a report's claim is about."""
        required = {id_: g.invariant.required(g.parameters) for id_, g in self.monitor.guards.items()}
        return {"policy": self.config.policy.value, **required}

    def elapsed(self) -> float:
        """Seconds of this run, resumed parts included."""
        return self.progress.seconds + time.perf_counter() - self.started
