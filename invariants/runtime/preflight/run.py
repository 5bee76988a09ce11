"""preflight: active probes before any compute is spent, in seconds; everything is left as it was found."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from karat.core.errors import ConfigError
from karat.invariants.run.catalogue import RULES
from karat.invariants.run.spec import Spec, read_spec, require_detached, require_names
from karat.invariants.runtime.preflight import (
    batches,
    causality,
    first_loss,
    gradients,
    modes,
    optimizers,
    positions,
    steps,
    terms,
    ties,
    twins,
)
from karat.invariants.runtime.preflight.keep import Kept
from karat.invariants.runtime.preflight.loss import SubjectError
from karat.invariants.runtime.preflight.probe import Held, NotRun, Probe
from karat.invariants.runtime.preflight.report import Finding, Report
from karat.invariants.runtime.preflight.subject import LossFunction, Subject

PROBES: tuple[Probe, ...] = (
    optimizers.PROBE,
    ties.PROBE,
    gradients.NUMBERS_PROBE,
    gradients.PROBE,
    terms.PROBE,
    steps.MOVES_PROBE,
    steps.PRECISION_PROBE,
    first_loss.LOSS_PROBE,
    first_loss.SOFTMAX_PROBE,
    causality.PROBE,
    positions.PROBE,
    batches.PROBE,
    modes.EVAL_PROBE,
    modes.DROPOUT_PROBE,
    twins.PROBE,
    steps.OVERFIT_PROBE,
)
"""In the order in which they run: what decides first, what takes long last."""
LOOP = "the loop is not seen before it runs"


def preflight(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    *,
    spec: Spec | Mapping[str, Any] | None = None,
) -> Report:
    """Probes a training set-up and returns what was found; model, optimizer, generators and batch stay as found, bit for bit.

    batch: what the loop passes, a tensor, tuple or dictionary. loss_fn(model, batch): a scalar tensor, or a dictionary
    of terms, of which "loss" or "total" is the total, else their sum. optimizer: one, or several. KaratError when the
    set-up cannot be judged: no parameters, no groups, a name in the spec that does not exist, an exception of loss_fn.
    """
    declared = read_spec(spec)
    held = _optimizers(optimizer)
    _require_model(model)
    require_names(declared, *_names(model), (name for rule in RULES for name in (rule.id, rule.slug)))
    kept = Kept(model, held, batch)
    subject = Subject(model, batch, loss_fn, held, declared, kept, time.perf_counter() + declared.seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loop will say its own once more
            require_detached(declared, subject.parameters, subject.first.terms)
            kept.put_back()
            if declared.example is not None:
                subject.forward()
                kept.put_back()
            return _run(subject)
    finally:
        kept.put_back()


def _run(subject: Subject) -> Report:
    findings: list[Finding] = []
    held: dict[str, str] = {}
    not_run: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for probe in PROBES:
        if subject.time_left() <= 0:
            not_run[probe.id] = f"the time budget of {subject.spec.seconds:g} s was used up: raise Spec(seconds=…)"
            continue
        began = time.perf_counter()
        try:
            outcome = probe.look(subject)
            if isinstance(outcome, Held):
                held[probe.id] = outcome.seen
            else:
                findings += outcome
        except NotRun as why:
            not_run[probe.id] = str(why)
        except SubjectError as error:  # the loop itself ran: it is the probe's inputs or weights that it does not take
            not_run[probe.id] = f"it could not be run: {error.seen}"
        finally:
            subject.kept.put_back()
        seconds[probe.id] = time.perf_counter() - began
    not_run["schedule"] = f"{LOOP}: watch(…) checks rates, clipping and accumulation as they happen"
    spoken, suppressed = _suppressed(subject.spec, findings)
    return Report(findings=spoken, suppressed=suppressed, held=held, not_run=not_run, seconds=seconds)


def _suppressed(spec: Spec, findings: list[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    spoken, suppressed = [], []
    for finding in findings:
        by = spec.suppressed((finding.id, finding.slug), finding.where)
        if by is None:
            spoken.append(finding)
        else:
            suppressed.append(finding.model_copy(update={"reason": by.reason}))
    return tuple(spoken), tuple(suppressed)


def _optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    several = (given,) if isinstance(given, torch.optim.Optimizer) else given
    held = tuple(several) if isinstance(several, (tuple, list)) else ()
    if not held or not all(isinstance(o, torch.optim.Optimizer) for o in held):
        raise ConfigError(
            f"optimizer is {type(given).__name__}", required="a torch.optim.Optimizer, or a list of them",
            next_step="preflight(model, batch, loss_fn, optimizer)",
        )  # fmt: skip
    if not any(group["params"] for o in held for group in o.param_groups):
        raise ConfigError(
            "the optimizer has no groups with parameters", required="an optimizer of the model's parameters",
            next_step="torch.optim.AdamW(model.parameters(), lr=…)",
        )  # fmt: skip
    return held


def _require_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}", required="a torch.nn.Module")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ConfigError("the model has no parameters", required="a module with parameters to train")
    for name, p in parameters.items():
        kind = _unsupported(p)
        if kind:
            raise ConfigError(f"the parameter {name} is {kind}", required="dense real parameters that hold numbers")
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError(
            "no parameter of the model has requires_grad", required="something to train",
            next_step="requires_grad_(True) on the part that is to be trained",
        )  # fmt: skip


def _unsupported(p: torch.Tensor) -> str:
    if is_lazy(p):
        return "not initialised yet: run one forward first"
    if p.layout is not torch.strided:
        return f"sparse ({p.layout})"
    if p.is_complex():
        return f"complex ({p.dtype}): give the optimizer its view_as_real"
    return "on the device meta, without numbers" if p.is_meta else ""


def _names(model: nn.Module) -> tuple[list[str], list[str]]:
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return parameters, [name for name, _ in model.named_modules() if name]
