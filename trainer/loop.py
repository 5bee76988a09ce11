"""The training loop: one step after another, with the guards looking before each step is taken.

Order of a step: learning rate set, forward, backward, clip, guards, optimizer step. A violation under STRICT is
raised by `monitor.check`, so that parameters and optimizer are as they were before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from karat.core.errors import InvariantViolation
from karat.core.formulas import halving
from karat.core.observation import Phase
from karat.core.policy import Policy
from karat.core.report import Violation
from karat.core.verdict import Status, Verdict
from karat.invariants.inv02_asha_threshold import as_written
from karat.invariants.runtime import probes
from karat.invariants.runtime.monitor import Stopped
from karat.invariants.standing import cite
from karat.trainer.config import RunConfig
from karat.trainer.evaluate import Interrupted, bits_per_byte, nats_by_kind
from karat.trainer.objectives.training import Losses, demand_reached
from karat.trainer.observables import View
from karat.trainer.observables import readings as plugged_in
from karat.trainer.readings import at_start, before_step, rungs_so_far
from karat.trainer.session import Session

Disturb = Callable[[int], None]
"""Called at the start of each step, after the learning rate is set: how fault tests reach into a run."""


class Diverged(InvariantViolation):
    """The loss is not a finite number: there is nothing to train on."""


def train(session: Session, go_on: Callable[[], bool], disturb: Disturb | None = None) -> None:
    """Takes every remaining step. Raises Interrupted, Stopped (STRICT) or Diverged, each before its step is taken."""
    config, progress = session.config, session.progress
    if progress.step == 0:
        session.monitor.check(Phase.START, 0, at_start(session))
    if progress.after_step_due:
        _after(session, go_on)
    for step in range(progress.step, config.steps):
        if not go_on():
            raise Interrupted
        for group in session.optimizer.param_groups:
            group["lr"] = config.schedule(step, group["peak"])
        if disturb is not None:
            disturb(step)
        losses, norm = _gradient(session, step)
        view = View(session.objective, session.optimizer, losses, step, norm, session.corpus.bytes_per_token)
        readings = [*before_step(session, step, losses), *plugged_in(session.plugins, Phase.BEFORE_STEP, view)]
        margins = session.monitor.check(Phase.BEFORE_STEP, step, readings)
        _demand_finite(session, step, losses, norm)
        if config.policy is not Policy.OFF:
            demand_reached(session.objective)
        session.optimizer.step()
        if session.average is not None:
            session.average.update(step)
        if session.objective.jepa is not None:
            session.objective.jepa.update_target(step)
        progress.step, progress.after_step_due = step + 1, True
        _record(session, step, losses, norm, margins)
        _after(session, go_on)


def precision(config: RunConfig) -> torch.autocast:
    """The autocast under which a run's forward passes are taken; none for float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")


def check_end(session: Session) -> None:
    """The guards on the final weights, which no further step would look at: one forward pass, nothing changed."""
    step = session.progress.step
    if session.config.policy is Policy.OFF:
        return
    inputs, targets = session.batches.batch_at(step)
    with torch.no_grad(), precision(session.config):
        losses: Losses = session.objective(torch.from_numpy(inputs), torch.from_numpy(targets), step)
    readings = [reading for reading in before_step(session, step, losses) if reading.invariant_id != "INV-8"]
    readings.append(rungs_so_far(session))
    view = View(session.objective, session.optimizer, losses, step, None, session.corpus.bytes_per_token)
    session.monitor.check(Phase.FINISH, step, [*readings, *plugged_in(session.plugins, Phase.FINISH, view)])
    _demand_finite(session, step, losses, 0.0)


def final_loss(session: Session, go_on: Callable[[], bool]) -> float:
    """The validation loss at the end, in bits per byte."""
    return bits_per_byte(session.model, session.validation, session.config.model.context, go_on)


def losses_by_kind(session: Session, go_on: Callable[[], bool]) -> dict[str, float]:
    """The validation loss at the end of each kind of synthetic sequence, in nats per token; empty for a text."""
    return nats_by_kind(session.model, session.validation, session.config.model.context, go_on)


def averaged_loss(session: Session, go_on: Callable[[], bool]) -> float | None:
    """The same of the averaged weights; None where there are none."""
    if session.average is None:
        return None
    with session.average.in_place_of_weights():
        return final_loss(session, go_on)


def hold_certificate(session: Session, final: float) -> None:
    """Holds the prune certificate against the finished run; Stopped under STRICT when the run voids it."""
    breach = certificate_breach(session, final)
    if breach and session.monitor.policy is not Policy.OFF:
        _void_certificate(session, final, breach)


def certificate_breach(session: Session, final: float) -> str:
    """Why the finished run voids the certificate; empty when it does not.

    A run that reaches the target must have been within `gap` of its end at every rung. One that ends above the target
    says nothing about the gap of those that reach it.
    """
    certificate = session.config.certificate
    if not final <= certificate.target:
        return ""
    for rung in session.progress.rungs:
        if rung["loss"] is None or rung["loss"] > final + certificate.gap:
            return f"at rung {rung['step']} the loss was {rung['loss']}, more than the gap above the final {final:.4f}"
    return ""


def _gradient(session: Session, step: int) -> tuple[Losses, float]:
    """Forward, backward, clip; the gradient norm is the one before clipping."""
    config = session.config
    inputs, targets = session.batches.batch_at(step)
    session.optimizer.zero_grad(set_to_none=True)
    with precision(config):
        losses: Losses = session.objective(torch.from_numpy(inputs), torch.from_numpy(targets), step)
    losses.total.backward()  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(session.objective.parameters(), config.optim.clip))
    return losses, norm


def _demand_finite(session: Session, step: int, losses: Losses, norm: float) -> None:
    """Diverged when the loss or the gradient is not finite; the guards have looked first and may know the cause."""
    loss = float(losses.total.detach())
    if session.config.policy is not Policy.OFF and not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"loss {loss}, gradient norm {norm} at step {step}",
            required="finite numbers",
            next_step="lower optim.lr, or look in log.jsonl for the step where the loss left its course",
        )


def _watch_collapse(session: Session, step: int, losses: Losses) -> None:
    """Says once when T-JEPA's features have been below a floor for a while."""
    if session.collapse is None or losses.jepa is None:
        return
    reasons = session.collapse.look(step, losses.jepa.online, losses.jepa.target)
    if reasons and not session.progress.collapsed:
        session.progress.collapsed = [f"T-JEPA's features collapsed by step {step}: {'; '.join(reasons)}"]
        session.console.warn(session.progress.collapsed[0])


def _record(session: Session, step: int, losses: Losses, norm: float, margins: dict[str, float]) -> None:
    progress = session.progress
    loss = float(losses.cross_entropy.detach()) / math.log(2) / session.corpus.bytes_per_token
    progress.last_loss = loss
    progress.first_loss = loss if progress.first_loss is None else progress.first_loss
    windows = session.config.windows
    if windows is not None:
        progress.recent = [*progress.recent, loss][-2 * windows.window :]
    row = {
        "step": step,
        "loss": loss,
        "lr": [float(group["lr"]) for group in session.optimizer.param_groups],
        "gradient_norm": norm,
        "margins": margins,
    }
    if losses.nca is not None:
        row["nca_loss"] = float(losses.nca.loss.detach())
        row["nca_entropy"] = float(losses.nca.hard_entropy)
    if losses.jepa is not None:
        row["jepa_loss"] = float(losses.jepa.loss.detach())
        row["jepa_explained"] = float(losses.jepa.explained)
    _watch_collapse(session, step, losses)
    session.log.write(row)
    session.console.step(step + 1, f"loss {loss:.3f} {session.corpus.unit}")


def _after(session: Session, go_on: Callable[[], bool]) -> None:
    """What is due after a step: a rung, an evaluation, a checkpoint."""
    config, step = session.config, session.progress.step
    due = config.eval.every is not None and step % config.eval.every == 0 and step < config.steps
    if step in config.rungs:
        _rung(session, go_on)
    elif due:
        loss = bits_per_byte(session.model, session.validation, config.model.context, go_on)
        session.evaluated(loss)
    session.progress.after_step_due = False
    every = config.checkpoint.every
    if every is not None and step % every == 0 and step < config.steps:
        session.save()
    session.save_best()


def _rung(session: Session, go_on: Callable[[], bool]) -> None:
    """At a rung the running prune rule is asked and its certificate checked. The run goes on: its end is the test."""
    config, step = session.config, session.progress.step
    loss = bits_per_byte(session.model, session.validation, config.model.context, go_on)
    prune = bool(halving.should_prune(loss, float(config.certificate.threshold)))
    finite = loss if math.isfinite(loss) else None
    session.progress.rungs.append({"step": step, "loss": finite, "prune": prune})
    session.evaluated(loss)
    session.console.note(
        f"rung {step}: {loss:.4f} {session.corpus.unit}, should_prune says "
        f"{'prune (recorded; the run goes on to test it)' if prune else 'keep'}"
    )
    session.monitor.check(
        Phase.RUNG,
        step,
        [probes.prune_certificate(loss, config.certificate), rungs_so_far(session)],
    )


def _void_certificate(session: Session, final: float, breach: str) -> None:
    monitor, certificate = session.monitor, session.config.certificate
    guard = monitor.guards["INV-2"]
    worst = max((r["loss"] for r in session.progress.rungs if r["loss"] is not None), default=math.inf)
    margin = float(certificate.gap) - (worst - final)
    guard.count(Verdict(Status.VIOLATED, margin), session.progress.step)
    status = monitor.standing.get("INV-2")
    record = Violation(
        invariant="INV-2",
        slug=guard.invariant.slug,
        step=session.progress.step,
        phase=Phase.FINISH.value,
        policy=monitor.policy.value,
        observed=f"final loss {final:.4f}, at or below the target {float(as_written(certificate.target)):g}",
        required=f"every rung at most the gap {float(certificate.gap):g} above the end",
        margin=margin if math.isfinite(margin) else None,
        previous_margin=guard.previous,
        unit="bits per byte",
        probe="certificate_breach",
        evidence=cite(status) if status else "no proof was consulted",
        reason=f"the certificate is VOID: {breach}",
    )
    monitor.add(record)
    if monitor.policy is Policy.STRICT:
        raise Stopped(record)
