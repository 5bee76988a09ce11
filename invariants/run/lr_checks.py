"""The learning rate of a run against what was declared of it: does it rise in its decay, past its total, is it the schedule?

FAIL where the declaration decides, WARN where the decay had to be inferred from the log. Rounding is monotone, so a
logged rise beyond float32 arithmetic is a rise of the rate that was used.
"""

from __future__ import annotations

import itertools
import math

from karat.core.formulas import anchors
from karat.core.run_log import ARITHMETIC, RunLog
from karat.invariants.inv08_lr_band import Band, margin
from karat.invariants.run.finding import Finding, Severity, decided, undecided
from karat.invariants.run.intent import Intent
from karat.invariants.run.proposals import Entry
from karat.invariants.run.reconstruct import Fit, fit_of
from karat.invariants.run.shapes import CONVENTIONS, Shape

Points = list[tuple[float, float]]
FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO
SHOWN = 4


def rates(log: RunLog) -> Points:
    """(step, rate) of the rows with a finite rate, in the order of the steps."""
    return [(step, lr) for step, lr in log.points("lr") if math.isfinite(lr)]


def finite_rate(log: RunLog) -> Finding:
    """RUN-lr-finite: every logged rate is a finite number and not negative."""
    required = "every learning rate finite and >= 0"
    logged = log.series("lr")
    if not logged:
        return undecided("RUN-lr-finite", FAIL, "the log has no learning rate", required)
    bad = [(place, lr) for place, lr in logged if not (math.isfinite(lr) and lr >= 0)]
    seen = ", ".join(f"{lr:g} at {place}" for place, lr in bad[:SHOWN]) or "all are"
    return decided("RUN-lr-finite", FAIL, not bad, seen, required, rows=len(logged), at=bad[0][0] if bad else "")


def step_budget(log: RunLog, intent: Intent) -> Finding:
    """RUN-step-budget: no row is of a step past the declared total."""
    required = "no step past the declared total_steps"
    last, total = log.last_step, intent.total_steps
    if last is None:
        return undecided("RUN-step-budget", FAIL, "the log numbers no steps", required)
    if total is None:
        return undecided("RUN-step-budget", FAIL, "no total is declared (--total-steps)", required)
    seen = f"the last row is of step {last:g}; {intent.cite('total_steps')}"
    return decided("RUN-step-budget", FAIL, last <= total, seen, required, rows=len(log.rows), at=f"step {last:g}")


def declared_once(intent: Intent) -> Finding:
    """RUN-declared-once: no two declarations contradict each other."""
    required = "one value for each declared quantity"
    count, conflicts = len(intent.declared()), list(intent.conflicts)
    if not count:
        return undecided("RUN-declared-once", WARN, "nothing is declared", required)
    if intent.decay_end is not None and intent.total_steps not in (None, intent.decay_end):
        conflicts.append(f"{intent.cite('decay_end')} and {intent.cite('total_steps')}")
    seen = "; ".join(conflicts) or f"{count} declarations, none twice with different values"
    return decided("RUN-declared-once", WARN, not conflicts, seen, required, rows=count)


def rises(points: Points) -> list[tuple[float, float, float, float]]:
    """(step, rate, next step, next rate) of neighbouring rows between which the rate rises beyond arithmetic."""
    pairs = itertools.pairwise(points)
    return [(s, a, t, b) for (s, a), (t, b) in pairs if b - a > ARITHMETIC * max(abs(a), abs(b))]


def _shown(found: list[tuple[float, float, float, float]]) -> str:
    listed = ", ".join(f"{a:g} at step {s:g} -> {b:g} at step {t:g}" for s, a, t, b in found[:SHOWN])
    return listed + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def rises_in_decay(log: RunLog, intent: Intent) -> Finding:
    """RUN-lr-decay: the rate never rises in its declared decay; WARN where only the log says that it decays."""
    required = "no rise after the decay begins" + (f", but at restarts {intent.restarts}" if intent.restarts else "")
    points, severity = rates(log), FAIL if intent.decays else WARN
    if intent.schedule == "constant":
        return undecided("RUN-lr-decay", FAIL, "the declared schedule has no decay", required)
    start = intent.decay_start
    origin = f"declared from step {start} on ({intent.schedule})" if start is not None else ""
    if start is None:
        falls = rises([(-s, lr) for s, lr in reversed(points)])
        if not falls:
            return undecided("RUN-lr-decay", severity, "the logged rate never falls" if points else _NO_RATE, required)
        start = int(min(-t for _, _, t, _ in falls))
        origin = f"first seen after step {start}" + (f" ({intent.schedule} is declared)" if intent.decays else "")
    after = [(s, lr) for s, lr in points if s >= start]
    if len(after) < 2:
        return undecided(
            "RUN-lr-decay", severity, f"{len(after)} rows in the decay {origin}", required, rows=len(after)
        )
    found = [r for r in rises(after) if not any(r[0] <= restart <= r[2] for restart in intent.restarts)]
    where = [f"{len(found)} rises in the decay {origin}: {_shown(found)}" if found else f"none in the decay {origin}"]
    if found and intent.end is not None:
        inside = sum(t <= intent.end for _, _, t, _ in found)
        where.append(f"{inside} of them up to the declared end {intent.end}, {len(found) - inside} past it")
    at = f"step {found[0][2]:g}" if found else ""
    return decided("RUN-lr-decay", severity, not found, "; ".join(where), required, rows=len(after), at=at)


_NO_RATE = "the log has no learning rate with a step"


def past_total(log: RunLog, intent: Intent) -> Finding:
    """RUN-lr-past-total: past the declared total the rate is not above what it was at the end, nor above the floor."""
    required = "past the declared total the rate stays at its end"
    total = intent.total_steps
    if total is None:
        return undecided("RUN-lr-past-total", FAIL, "no total is declared (--total-steps)", required)
    points = rates(log)
    before, after = [p for p in points if p[0] <= total], [p for p in points if p[0] > total]
    if not after:
        why = f"no row past step {total}" if points else _NO_RATE
        return undecided("RUN-lr-past-total", FAIL, why, required)
    if intent.decays and intent.floor is not None:
        limit, of = intent.floor + log.slack("lr", intent.floor), intent.cite("floor")
    elif before:
        limit, of = before[-1][1] * (1 + ARITHMETIC), f"{before[-1][1]:g} at step {before[-1][0]:g}, the last before it"
    else:
        return undecided("RUN-lr-past-total", FAIL, f"no row up to step {total}, and no floor declared", required)
    above = [(s, lr) for s, lr in after if lr > limit]
    listed = ", ".join(f"{lr:g} at step {s:g}" for s, lr in above[:SHOWN]) or "none"
    seen = f"{len(above)} of {len(after)} rows past {intent.cite('total_steps')} are above {of}: {listed}"
    at = f"step {above[0][0]:g}" if above else ""
    return decided("RUN-lr-past-total", FAIL, not above, seen, required, rows=len(after), at=at)


def declared_shapes(intent: Intent) -> list[Shape]:
    """The declared schedule under every convention of counting steps; empty when it is not declared in full."""
    peak, kind = intent.peak, intent.schedule
    if peak is None or kind is None:
        return []
    warmup = intent.warmup or 0
    stable = intent.stable_end if kind == "wsd" else warmup
    end = intent.end if kind != "constant" else warmup
    if stable is None or end is None or (kind != "constant" and intent.floor is None):
        return []
    family = "wsd, cosine decay" if kind == "wsd" and intent.decay == "cosine" else kind
    low = intent.floor if intent.floor is not None else peak
    return [Shape(family, warmup, stable, end, peak, low, shift, zero) for shift, zero in CONVENTIONS]


def conforms(log: RunLog, intent: Intent) -> Finding:
    """RUN-lr-schedule: every logged rate is that of the declared schedule, to the digits logged, past its end too."""
    required = "lr = the declared schedule at every row, to the digits logged"
    points = [(s, lr) for s, lr in rates(log) if s >= 0]
    if not points:
        return undecided("RUN-lr-schedule", FAIL, _NO_RATE, required)
    shapes = declared_shapes(intent)
    if not shapes or intent.restarts:
        names = ("schedule", "total_steps", "peak", "floor") + (("stable_end",) if intent.schedule == "wsd" else ())
        missing = [f"--{n.replace('_', '-')}" for n in names if getattr(intent, n) is None]
        why = (
            f"not declared: {', '.join(missing)}" if missing else "restarts are declared: no formula of them is proved"
        )
        return undecided("RUN-lr-schedule", FAIL, why, required)
    entries = [Entry(s, lr, log.slack("lr", lr) or math.ulp(0.0), log.digits["lr"].unit(lr)) for s, lr in points]
    fits = [fit_of(entries, shape) for shape in shapes]
    best = max(fits, key=lambda fit: (fit.agreeing, -fit.squares))
    off = [e for e in entries if abs(best.shape.rate(e.step) - e.lr) > e.slack]
    listed = ", ".join(f"{e.lr:g} at step {e.step:g} (declared {best.shape.rate(e.step):.6g})" for e in off[:SHOWN])
    seen = f"{best.agreeing} of {best.rows} rows agree with {best.shape.text}" + (f"; not {listed}" if off else "")
    at = f"step {off[0].step:g}" if off else ""
    return decided("RUN-lr-schedule", FAIL, not off, seen, required, rows=best.rows, at=at)


def reconstructed(log: RunLog, fit: Fit | None) -> Finding:
    """RUN-lr-reconstructed: the schedule that fits every row does not climb again past its own total."""
    required = "a schedule that fits every row and does not climb past its own end"
    if fit is None:
        return undecided("RUN-lr-reconstructed", WARN, "too few rows with a learning rate", required)
    if not fit.holds:
        short = f"only {fit.rows} rows" if fit.agreeing == fit.rows else f"{fit.agreeing} of {fit.rows} rows agree"
        why = f"no known schedule fits; nearest ({short}, worst {fit.worst:.3g} units of the last digit): {fit.shape.text}"
        return undecided("RUN-lr-reconstructed", WARN, why, required, rows=fit.rows)
    shape = fit.shape
    past = sum(step > shape.total for step, _ in log.points("lr"))
    seen = f"{shape.text}; {fit.agreeing} of {fit.rows} rows, worst residual {fit.worst:.2g} units of the last digit"
    if shape.unclamped:
        seen += f"; {past} rows are past that total, where its progress is not clamped"
    elif shape.family in ("linear", "wsd") and min(lr for _, lr in rates(log)[-2:]) > shape.floor * 1.0001:
        seen += "; the floor was not reached, so that only the slope of the decay is determined, not its end"
    return decided("RUN-lr-reconstructed", WARN, not shape.unclamped, seen, required, rows=fit.rows)


def in_band(log: RunLog, intent: Intent, fit: Fit | None) -> Finding:
    """RUN-lr-band, informative: the plateau's rate in INV-8's default band, and the nearest golden anchor."""
    band = Band()
    low, high = band.ends
    required = f"INV-8: {low:.6g} <= peak <= {high:.6g}"
    known = [lr for _, lr in rates(log) if lr > 0]
    if not known:
        return undecided("RUN-lr-band", INFO, _NO_RATE, required)
    peak = intent.peak or (fit.shape.peak if fit and fit.holds else max(known))
    distance = float(margin({"lr": peak, "on_plateau": 1.0}, band))
    seen = f"peak {peak:g}, margin {distance:+.4g}; the nearest anchor is phi^-n/2 with n = {_nearest(peak)}"
    return decided("RUN-lr-band", INFO, distance >= 0, seen, required, rows=len(known))


def _nearest(rate: float) -> str:
    try:
        return str(anchors.nearest_anchor(rate))
    except ValueError:
        return "beyond 80"
