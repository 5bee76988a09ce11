"""What the guards look at in a run: readings off the session, at its start, before each step and at a rung."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from karat.core.policy import Policy
from karat.invariants import inv03_gf16_safe_domain as inv03
from karat.invariants import inv11_mhc_doubly_stochastic as inv11
from karat.invariants.runtime import probes
from karat.trainer.objectives.training import Losses
from karat.trainer.session import Session

PLANNED = 100_000
"""How many steps of the planned schedule are looked at before the first one; each step is looked at when it comes."""


def planned_steps(steps: int) -> Iterable[int]:
    """Every step up to PLANNED of them; of a longer run PLANNED evenly spaced ones, the first and the last included."""
    if steps <= PLANNED:
        return range(steps)
    return (k * (steps - 1) // (PLANNED - 1) for k in range(PLANNED))


def at_start(session: Session) -> list[probes.Reading]:
    """Before the first step: the planned schedule and rungs, the gain, and the certificate as declared."""
    config = session.config
    planned = [
        (config.schedule(step, peak), config.plateau(step), config.band_of(peak))
        for peak in config.peaks
        for step in planned_steps(config.steps)
    ]
    certificate = config.certificate
    readings = [
        probes.prune_certificate(float(certificate.target), certificate),
        probes.closing_gain(session.model.gains(), config.closure),
        probes.schedule_peak(planned),
        probes.rungs_held(config.rungs, config.steps),
    ]
    if config.ema.enabled:
        decays = [config.decay(step) for step in (*planned_steps(config.steps), config.steps)]
        readings.append(probes.decay_plan(decays, config.averaging))
    if session.objective.jepa is not None:
        follows = [session.objective.jepa.decay(step) for step in (*planned_steps(config.steps), config.steps)]
        readings.append(replace(probes.decay_plan(follows, config.jepa.averaging), declared=config.jepa.averaging))
    return readings


def before_step(session: Session, step: int, losses: Losses) -> list[probes.Reading]:
    """Before a step: rates, weights, and what the forward pass of this step left behind; nothing when the policy is OFF."""
    if session.config.policy is Policy.OFF:
        return []
    config = session.config
    rates = [(float(group["lr"]), config.band_of(group["peak"])) for group in session.optimizer.param_groups]
    readings = [probes.learning_rate(rates, config.plateau(step))]
    readings.append(probes.closing_gain(session.model.gains(), config.closure))
    windows, recent = config.windows, session.progress.recent
    if windows is not None and len(recent) == 2 * windows.window:
        readings.append(probes.smoothed_loss(recent))
    if session.average is not None and (step > 0 or session.average.used is not None):
        average = session.average
        last = math.nan if average.used is None else average.used  # an average that was never updated is a violation
        scheduled = config.decay(step - 1)
        readings.append(probes.weight_average(last, scheduled, average.previous, average.outside))
    readings += _target_readings(session, step)
    rounded = [weight.detach() for _, weight in session.model.gf16_parameters()] + session.model.gf16_inputs()
    if rounded:
        readings.append(probes.gf16_absmax(rounded, inv03.DEFAULT))
    if not bool(torch.isfinite(losses.total.detach())):
        return readings  # a grid or a mixture of NaN would name the wrong cause
    if losses.nca is not None:
        readings.append(probes.nca_entropy(losses.nca.hard_counts))
    readings.append(probes.attention_scores(session.model.gains(), session.model.attention_samples(), config.gain))
    fresh = config.model.zero_outputs and step == 0
    if config.model.ternary:
        readings.append(probes.ternary_layers(session.model.ternary_samples(), may_be_zero=fresh))
    output = losses.output
    if output.mixing_SNN is not None and output.stream_spread is not None:
        mixing = probes.mixing_matrices(output.mixing_SNN, output.stream_spread)
        apart = replace(inv11.DEFAULT, spread=0.0) if fresh else inv11.DEFAULT  # nothing was added to the streams yet
        readings.append(replace(mixing, declared=apart))
    return readings


def _target_readings(session: Session, step: int) -> list[probes.Reading]:
    """INV-6 on the target encoder of T-JEPA: its decay and its weights, by the decay declared for it."""
    jepa = session.objective.jepa
    if jepa is None or (step == 0 and jepa.target.used is None):
        return []
    last = math.nan if jepa.target.used is None else jepa.target.used
    reading = probes.weight_average(last, jepa.decay(step - 1), jepa.target.previous, jepa.target.outside)
    return [replace(reading, declared=session.config.jepa.averaging)]


def rungs_so_far(session: Session) -> probes.Reading:
    """The steps at which a rung was really held so far, beside the present one."""
    progress = session.progress
    return probes.rungs_held([rung["step"] for rung in progress.rungs], progress.step)
