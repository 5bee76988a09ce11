"""Everything that one run holds: made from a configuration, saved to a checkpoint, taken up again from one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from karat.core.errors import CheckpointError, DataError
from karat.core.policy import Policy
from karat.core.report import ProofStatus
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv08_lr_band as inv08
from karat.invariants import inv11_mhc_doubly_stochastic as inv11
from karat.invariants import inv12_ternary_exact as inv12
from karat.invariants.catalogue import find, found
from karat.invariants.plugins import Plugin, demand_sound
from karat.invariants.runtime.ledger import Ledger
from karat.invariants.runtime.monitor import Monitor
from karat.invariants.standing import demand_current, standings
from karat.trainer import observables
from karat.trainer.checkpoint import (
    Checkpoint,
    CheckpointSaver,
    Draft,
    Meta,
    NoRoom,
    capture_rng,
    draft,
    measured,
    require_same_config,
    restore_model,
    restore_optimizer,
    restore_rng,
)
from karat.trainer.checkpoint.retention import BEST
from karat.trainer.config import RunConfig
from karat.trainer.console import Console
from karat.trainer.data.batches import Batches
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.evaluate import Validation, validation_part
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaObjective
from karat.trainer.objectives.jepa_collapse import CollapseWatch
from karat.trainer.objectives.nca import NcaObjective, near_equal_classes
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer
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


def guards_of(config: RunConfig) -> list[tuple[Any, Any]]:
    """(invariant, declared parameters) of the guards that this configuration calls for, in the catalogue's order."""
    chosen: list[tuple[str, Any]] = []
    if config.windows is not None:
        chosen.append(("INV-1", config.windows))
    chosen.append(("INV-2", config.certificate))
    if config.model.gf16:
        chosen.append(("INV-3", inv03.DEFAULT))
    if config.model.nca:
        chosen.append(("INV-4", config.entropy))
    if config.closure is not None:
        chosen.append(("INV-5", config.closure))
    if config.ema.enabled or config.jepa.enabled:
        chosen.append(("INV-6", config.averaging if config.ema.enabled else config.jepa.averaging))
    chosen.append(("INV-8", config.band))
    chosen.append(("INV-9", config.gain))
    chosen.append(("INV-10", config.declared_rungs))
    if config.model.streams > 1:
        chosen.append(("INV-11", inv11.DEFAULT))
    if config.model.ternary:
        chosen.append(("INV-12", inv12.DEFAULT))
    return [(find(name), parameters) for name, parameters in chosen]


def plugins_on_duty() -> tuple[Plugin, ...]:
    """The plug-ins whose quantities this trainer offers."""
    return tuple(plugin for plugin in found(with_probes=True).plugins if observables.moments(plugin))


def open_session(config: RunConfig, out: Path, console: Console) -> Session:
    """Loads the data, builds the model and puts the guards on duty. Under STRICT it demands current proofs first."""
    plugins, broken = plugins_on_duty(), found(with_probes=True).broken
    guards = [*guards_of(config), *((plugin.invariant, plugin.invariant.parameters) for plugin in plugins)]
    proofs = standings(invariant for invariant, _ in guards)
    if config.policy is Policy.STRICT:
        demand_sound(broken)
        demand_current(proofs)
    for error in broken:
        console.warn(f"left out: {error}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed % 2**32)
    shape = config.model
    corpus = corpus_of(config, console)
    nca = None
    if shape.nca:
        counts = np.bincount(corpus.train, minlength=shape.vocab)[: shape.vocab].tolist()
        nca = NcaObjective(shape.d_model, shape.vocab, token_classes=near_equal_classes(counts))
    objective = objective_of(config, nca)
    optimizer = build_optimizer(objective, rates(config))
    ledger = Ledger(out / "ledger.jsonl")
    monitor = Monitor.of(
        guards,
        config.policy,
        ledger=ledger,
        say=console.warn,
        standing={status.invariant: status for status in proofs},
    )
    return Session(
        config=config,
        out=out,
        corpus=corpus,
        validation=validation_part(corpus, config.eval.bytes),
        batches=Batches(corpus.train, shape.context, config.batch_size, config.seed, rows=corpus.synthetic is not None),
        objective=objective,
        optimizer=optimizer,
        monitor=monitor,
        proofs=proofs,
        ledger=ledger,
        log=Ledger(out / "log.jsonl"),
        console=console,
        collapse=CollapseWatch(config.jepa.warmup) if config.jepa.enabled else None,
        plugins=plugins if config.policy is not Policy.OFF else (),
        average=_weight_average(config, objective.model) if config.ema.enabled else None,
    )


def objective_of(config: RunConfig, nca: NcaObjective | None) -> TrainingObjective:
    """The model, with T-JEPA's parts where it is configured."""
    model = Transformer(config.model)
    if not config.jepa.enabled:
        return TrainingObjective(model, nca)
    return TrainingObjective(model, nca, JepaObjective(model, config.jepa, steps=config.steps, seed=config.seed))


def rates(config: RunConfig) -> Rates:
    """What the run's optimizer is made with."""
    optim = config.optim
    return Rates(
        name=optim.name,
        lr=optim.lr,
        matrix_lr=optim.matrix_lr,
        weight_decay=optim.weight_decay,
        betas=(optim.beta1, optim.beta2),
        ns_steps=optim.ns_steps,
        ns_bfloat16=optim.ns_dtype == "bfloat16",
    )


def corpus_of(config: RunConfig, console: Console) -> Corpus:
    """The tokens that the run trains on and is judged by."""
    return load_corpus(
        config.data,
        data_dir=config.data_dir,
        context=config.model.context,
        vocab=config.model.vocab,
        tokens=config.tokens,
        validation=config.validation,
        working=console.working,
    )


def _weight_average(config: RunConfig, model: Transformer) -> WeightAverage:
    """The averages of the model's weights, with the declared decay."""
    start, _ = config.averaging.ends
    return WeightAverage(model.named_parameters(), config.decay, every=config.ema.hull_every, first=start)


def take_up(session: Session, checkpoint: Checkpoint) -> None:
    """Restores a checkpoint into a freshly opened session, bit for bit. Errors when it belongs to another run."""
    require_same_config(checkpoint, session.config.digest, session.config.trajectory)
    now, then = session.duty(), checkpoint.extra["duty"]
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: not as declared when this run began, so its report would not be true of its first steps",
            required="; ".join(f"{name}: {then.get(name, 'not on duty')}" for name in changed),
            next_step="leave config.toml as the run wrote it and the same packages installed, or start a new run",
        )
    if checkpoint.extra["data"] != session.corpus.manifest.digest:
        raise DataError(
            f"the data {session.config.data} is not what this run was trained on",
            required=f"the corpus with manifest digest {str(checkpoint.extra['data'])[:16]}…",
            next_step="restore the data, or start a new run",
        )
    judged_by = checkpoint.extra.get(
        "judged_by", session.validation.text
    )  # checkpoints made before it was kept have none
    if judged_by != session.validation.text:
        raise CheckpointError(
            f"this run's validation losses were taken on {judged_by}, not on {session.validation.text}",
            required="eval.bytes as it was when the run began, so that its losses can be compared",
            next_step="leave config.toml as the run wrote it, or start a new run",
        )
    restore_model(session.objective, checkpoint)
    restore_optimizer(session.optimizer, checkpoint)
    restore_rng(checkpoint.rng)
    session.monitor.restore(checkpoint.extra["monitor"])
    if session.average is not None:
        session.average.restore(checkpoint.extra["average"])
    session.progress = Progress(**checkpoint.extra["progress"])
    session.progress.resumed_at.append(session.progress.step)
