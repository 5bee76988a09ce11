"""Everything that one run holds: made from a configuration, saved to a checkpoint, taken up again from one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
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
    capture_rng,
    require_same_config,
    restore_model,
    restore_optimizer,
    restore_rng,
    save_checkpoint,
)
from karat.trainer.config import RunConfig
from karat.trainer.console import Console
from karat.trainer.data.batches import Batches
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.evaluate import Validation, validation_part
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.nca import NcaObjective, near_equal_classes
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer
from karat.trainer.optim.ema import WeightAverage


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

    def save(self, name: str | None = None) -> Path:
        """Writes a checkpoint of the state before step `progress.step`."""
        return save_checkpoint(
            self.checkpoints,
            step=self.progress.step,
            model_state=self.objective.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            extra={
                "progress": {**vars(self.progress), "seconds": self.elapsed()},
                "monitor": self.monitor.state(),
                "average": self.average.state() if self.average is not None else None,
                "duty": self.duty(),
                "data": self.corpus.manifest.digest,
                "data_position": self.progress.step,
                "learning_rate": self.config.schedule(self.progress.step),
            },
            rng=capture_rng(),
            config_digest=self.config.digest,
            settings=self.config.trajectory,
            keep_last=self.config.checkpoint.keep_last,
            name=name,
        )

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
    if config.ema.enabled:
        chosen.append(("INV-6", config.averaging))
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
    corpus = load_corpus(
        config.data, data_dir=config.data_dir, context=shape.context, vocab=shape.vocab, validation=config.validation
    )
    nca = None
    if shape.nca:
        counts = np.bincount(corpus.train, minlength=shape.vocab)[: shape.vocab].tolist()
        nca = NcaObjective(shape.d_model, shape.vocab, token_classes=near_equal_classes(counts))
    objective = TrainingObjective(Transformer(shape), nca)
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
        validation=validation_part(corpus.validation, config.eval.bytes),
        batches=Batches(corpus.train, shape.context, config.batch_size, config.seed),
        objective=objective,
        optimizer=optimizer,
        monitor=monitor,
        proofs=proofs,
        ledger=ledger,
        log=Ledger(out / "log.jsonl"),
        console=console,
        plugins=plugins if config.policy is not Policy.OFF else (),
        average=_weight_average(config, objective.model) if config.ema.enabled else None,
    )


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
    restore_model(session.objective, checkpoint)
    restore_optimizer(session.optimizer, checkpoint)
    restore_rng(checkpoint.rng)
    session.monitor.restore(checkpoint.extra["monitor"])
    if session.average is not None:
        session.average.restore(checkpoint.extra["average"])
    session.progress = Progress(**checkpoint.extra["progress"])
    session.progress.resumed_at.append(session.progress.step)
