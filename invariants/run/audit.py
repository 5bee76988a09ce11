"""The audit of a log: every check, in the order in which a reader asks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from karat.core.run_log import RunLog
from karat.invariants.run import loss_checks, lr_checks
from karat.invariants.run.finding import Finding, Outcome
from karat.invariants.run.intent import Intent
from karat.invariants.run.reconstruct import Fit, reconstruct
from karat.invariants.run.spec import covering


@dataclass(frozen=True)
class Audit:
    """What was read, what was declared, what was found, and the schedule that fits best."""

    log: RunLog
    intent: Intent
    findings: tuple[Finding, ...]
    fit: Fit | None


def audit(log: RunLog, intent: Intent, window: int | None = None) -> Audit:
    """Judges a log by itself and by what was declared; a check that cannot be decided is in the result, with the reason."""
    hints = [total for total in (intent.total_steps, intent.decay_end) if total]
    fit = reconstruct(log, hints)
    findings = (
        lr_checks.step_budget(log, intent),
        lr_checks.rises_in_decay(log, intent),
        lr_checks.past_total(log, intent),
        lr_checks.conforms(log, intent),
        lr_checks.reconstructed(log, fit),
        lr_checks.in_range(log, intent),
        lr_checks.in_band(log, intent, fit),
        loss_checks.finite(log),
        loss_checks.not_rising(log, window),
        loss_checks.plausible_validation(log),
        loss_checks.first_loss(log, intent),
        loss_checks.reduction(log, intent),
        loss_checks.steps_in_order(log),
        loss_checks.even_tokens(log),
        lr_checks.declared_once(intent),
    )
    return Audit(log, intent, tuple(_suppressed(finding, intent) for finding in findings), fit)


def _suppressed(finding: Finding, intent: Intent) -> Finding:
    """The finding, with the reason where a declaration suppresses its violation by id or slug."""
    if finding.outcome is not Outcome.VIOLATED:
        return finding
    by = covering(intent.suppress, (finding.id, finding.slug), finding.where)
    return finding if by is None else replace(finding, outcome=Outcome.SUPPRESSED, reason=by.reason)
