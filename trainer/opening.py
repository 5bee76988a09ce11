"""A run's session: made from a configuration, with its guards put on duty; or taken up again from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from karat.core.errors import CheckpointError, DataError
from karat.core.policy import Policy
from karat.invariants import inv03_gf16_safe_domain as inv03
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
    require_same_config,
    restore_model,
    restore_optimizer,
    restore_rng,
)
from karat.trainer.config import RunConfig
from karat.trainer.console import Console
from karat.trainer.data.batches import Batches
from karat.trainer.data.corpus import Corpus, load_corpus
from karat.trainer.evaluate import validation_part
from karat.trainer.models.transformer import Transformer
from karat.trainer.objectives.jepa import JepaObjective
from karat.trainer.objectives.jepa_collapse import CollapseWatch
from karat.trainer.objectives.nca import NcaObjective, near_equal_classes
from karat.trainer.objectives.training import TrainingObjective
from karat.trainer.optim.build import Rates, build_optimizer
from karat.trainer.optim.ema import WeightAverage
from karat.trainer.session import Progress, Session


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
    now_judged = session.validation.text
    judged_by = checkpoint.extra.get("judged_by", now_judged)  # checkpoints made before it was kept have none
    if judged_by != now_judged:
        raise CheckpointError(
            f"this run's validation losses were taken on {judged_by}, not on {now_judged}",
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
