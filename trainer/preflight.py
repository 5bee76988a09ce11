"""`trainer preflight`: the active probes on the run that a configuration describes, before its first step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from karat.core.policy import Policy
from karat.invariants.runtime.preflight import Report, Spec, preflight
from karat.trainer.config import RunConfig
from karat.trainer.console import Console
from karat.trainer.objectives.training import Losses
from karat.trainer.run import session_of

Batch = tuple[Tensor, Tensor]


def terms(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The terms whose sum a step minimises."""
    losses: Losses = model(*batch)
    automaton = {} if losses.nca is None else {"nca": losses.nca.loss}
    jepa = {} if losses.jepa is None else {"jepa": losses.jepa.loss}
    return {"cross_entropy": losses.cross_entropy, **automaton, **jepa}


def preflight_config(config: RunConfig, console: Console) -> Report:
    """The report on the run's own model, first batch, loss and optimizer; nothing is written, no guard is on duty."""
    spec = Spec(causal=True, batch_independent=True, deterministic=True, classes=config.model.vocab, network="model")
    unguarded = config.model_copy(update={"policy": Policy.OFF})
    with tempfile.TemporaryDirectory() as folder, session_of(unguarded, Path(folder) / "run", console) as session:
        for group in session.optimizer.param_groups:
            group["lr"] = group["peak"]
        inputs, targets = session.batches.batch_at(0)
        batch = torch.from_numpy(inputs), torch.from_numpy(targets)
        return preflight(session.objective, batch, terms, session.optimizer, spec=spec)
