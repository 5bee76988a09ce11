"""The learning rate of a run against what was declared of it: does it rise in its decay, past its total, is it the schedule?

FAIL where the declaration decides, WARN where the decay had to be inferred from the log. Rounding is monotone, so a
logged rise beyond float32 arithmetic is a rise of the rate that was used.
"""

from __future__ import annotations

import itertools
import math
import sys

from karat.core.formulas import anchors
from karat.core.run_log import ARITHMETIC, RunLog
from karat.core.verdict import accepts
from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.inv08_lr_band import Band, margin
from karat.invariants.run.finding import Finding, decided, judged, undecided
from karat.invariants.run.intent import Intent
from karat.invariants.run.proposals import Entry
from karat.invariants.run.reconstruct import Fit, fit_of
from karat.invariants.run.rule import Severity
from karat.invariants.run.run01_step_budget import RULE as BUDGET
from karat.invariants.run.run02_lr_schedule import RULE as SCHEDULE
from karat.invariants.run.run03_lr_decay import RULE as DECAY
from karat.invariants.run.run06_lr_range import RULE as RANGE
from karat.invariants.run.run52_declarations import RULE as DECLARATIONS
from karat.invariants.run.run53_schedule_fit import RULE as SCHEDULE_FIT
from karat.invariants.run.run55_lr_past_end import RULE as PAST_END
from karat.invariants.run.shapes import CONVENTIONS, Shape

Points = list[tuple[float, float]]
FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO
SHOWN = 4


def rates(log: RunLog) -> Points:
    """(step, rate) of the rows with a finite rate, in the order of the steps."""
    return [(step, lr) for step, lr in log.points("lr") if math.isfinite(lr)]


def in_range(log: RunLog, intent: Intent) -> Finding:
    """RUN-6: every logged rate is a finite number, not negative, and within the declared range."""
    low, high = intent.lr_range or (0.0, sys.float_info.max)
    required = (
        f"every learning rate within {low:g} and {high:g}" if intent.lr_range else "every learning rate finite and >= 0"
    )
    logged = log.series("lr")
    if not logged:
        return undecided(RANGE.id, FAIL, "the log has no learning rate", required)
    bad = [(place, lr) for place, lr in logged if not RANGE.holds_for(lr, low, high)]
    seen = ", ".join(f"{lr:g} at {at}" for at, lr in bad[:SHOWN]) or "all are"
    place, worst = bad[0] if bad else ("", min((lr for _, lr in logged), key=lambda lr: RANGE.margin(lr, low, high)))
    return judged(RANGE, FAIL, (worst, low, high), seen, required, rows=len(logged), where=place)


def step_budget(log: RunLog, intent: Intent) -> Finding:
    """RUN-1: no row is of a step past the declared total."""
    required = "no step past the declared total_steps"
    last, total = log.last_step, intent.total_steps
    if last is None:
        return undecided(BUDGET.id, FAIL, "the log numbers no steps", required)
    if total is None:
        return undecided(BUDGET.id, FAIL, "no total is declared (--total-steps)", required)
    seen = f"the last row is of step {last:g}; {intent.cite('total_steps')}"
    return judged(BUDGET, FAIL, (last, 0, total), seen, required, rows=len(log.rows), where=f"step {last:g}")


def declared_once(intent: Intent) -> Finding:
    """RUN-52: no two declarations contradict each other."""
    required = "one value for each declared quantity"
    count, conflicts = len(intent.declared()), list(intent.conflicts)
    if not count:
        return undecided(DECLARATIONS.id, WARN, "nothing is declared", required)
    if intent.decay_end is not None and intent.total_steps is not None and intent.decay_end > intent.total_steps:
        conflicts.append(f"{intent.cite('decay_end')} and {intent.cite('total_steps')}")
    seen = "; ".join(conflicts) or f"{count} declarations, none twice with different values"
    return judged(DECLARATIONS, WARN, (len(conflicts), 0), seen, required, rows=count)


def rises(points: Points) -> list[tuple[float, float, float, float]]:
    """(step, rate, next step, next rate) of neighbouring rows between which the rate rises beyond arithmetic."""
    pairs = itertools.pairwise(points)
    return [(s, a, t, b) for (s, a), (t, b) in pairs if not DECAY.holds_for(b, _level(a, b))]


def _level(a: float, b: float) -> float:
    """The largest rate that may follow upon `a` and count as no rise: the arithmetic of a float32 optimizer."""
    return a + ARITHMETIC * max(abs(a), abs(b))


def _shown(found: list[tuple[float, float, float, float]]) -> str:
    listed = ", ".join(f"{a:g} at step {s:g} -> {b:g} at step {t:g}" for s, a, t, b in found[:SHOWN])
    return listed + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def rises_in_decay(log: RunLog, intent: Intent) -> Finding:
    """RUN-3: the rate never rises in its declared decay; WARN where only the log says that it decays."""
    required = "no rise after the decay begins" + (f", but at restarts {intent.restarts}" if intent.restarts else "")
    points, severity = rates(log), FAIL if intent.decays else WARN
    if intent.restarts == "any":
        return undecided(DECAY.id, severity, 'restarts = "any" declares that it rises throughout', required)
    if intent.schedule == "constant":
        return undecided(DECAY.id, FAIL, "the declared schedule has no decay", required)
    start = intent.decay_start
    origin = f"declared from step {start} on ({intent.schedule})" if start is not None else ""
    if start is None:
        falls = rises([(-s, lr) for s, lr in reversed(points)])
        if not falls:
            return undecided(DECAY.id, severity, "the logged rate never falls" if points else _NO_RATE, required)
        start = int(min(-t for _, _, t, _ in falls))
        origin = f"first seen after step {start}" + (f" ({intent.schedule} is declared)" if intent.decays else "")
    after = [(s, lr) for s, lr in points if s >= start]
    if len(after) < 2:
        return undecided(DECAY.id, severity, f"{len(after)} rows in the decay {origin}", required, rows=len(after))
    found = [r for r in rises(after) if not any(r[0] <= restart <= r[2] for restart in intent.restarts)]
    where = [f"{len(found)} rises in the decay {origin}: {_shown(found)}" if found else f"none in the decay {origin}"]
    if found and intent.end is not None:
        inside = sum(t <= intent.end for _, _, t, _ in found)
        where.append(f"{inside} of them up to the declared end {intent.end}, {len(found) - inside} past it")
    level = after[-1][1]
    _, a, _, b = max(found, key=lambda r: r[3] - r[1]) if found else (0.0, level, 0.0, level)
    at = f"step {found[0][2]:g}" if found else ""
    return judged(DECAY, severity, (b, _level(a, b)), "; ".join(where), required, rows=len(after), where=at)


_NO_RATE = "the log has no learning rate with a step"


def past_total(log: RunLog, intent: Intent) -> Finding:
    """RUN-55: past the declared total the rate is not above what it was at the end, nor above the floor."""
    required = "past the declared total the rate stays at its end"
    total = intent.total_steps
    if total is None:
        return undecided(PAST_END.id, FAIL, "no total is declared (--total-steps)", required)
    points = rates(log)
    before, after = [p for p in points if p[0] <= total], [p for p in points if p[0] > total]
    if not after:
        why = f"no row past step {total}" if points else _NO_RATE
        return undecided(PAST_END.id, FAIL, why, required)
    if intent.decays and intent.floor is not None:
        limit, of = intent.floor + log.slack("lr", intent.floor), intent.cite("floor")
    elif before:
        limit, of = before[-1][1] * (1 + ARITHMETIC), f"{before[-1][1]:g} at step {before[-1][0]:g}, the last before it"
    else:
        return undecided(PAST_END.id, FAIL, f"no row up to step {total}, and no floor declared", required)
    above = [(s, lr) for s, lr in after if not PAST_END.holds_for(lr, limit)]
    listed = ", ".join(f"{lr:g} at step {s:g}" for s, lr in above[:SHOWN]) or "none"
    seen = f"{len(above)} of {len(after)} rows past {intent.cite('total_steps')} are above {of}: {listed}"
    at = f"step {above[0][0]:g}" if above else ""
    highest = max(lr for _, lr in after)
    return judged(PAST_END, FAIL, (highest, limit), seen, required, rows=len(after), where=at)


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
    """RUN-2: every logged rate is that of the declared schedule, to the digits logged, past its end too."""
    required = "lr = the declared schedule at every row, to the digits logged"
    points = [(s, lr) for s, lr in rates(log) if s >= 0]
    if not points:
        return undecided(SCHEDULE.id, FAIL, _NO_RATE, required)
    shapes = declared_shapes(intent)
    if not shapes or intent.restarts:
        names = ("schedule", "total_steps", "peak", "floor") + (("stable_end",) if intent.schedule == "wsd" else ())
        missing = [f"--{n.replace('_', '-')}" for n in names if getattr(intent, n) is None]
        why = (
            f"not declared: {', '.join(missing)}" if missing else "restarts are declared: no formula of them is proved"
        )
        return undecided(SCHEDULE.id, FAIL, why, required)
    entries = [Entry(s, lr, log.slack("lr", lr) or math.ulp(0.0), log.digits["lr"].unit(lr)) for s, lr in points]
    fits = [fit_of(entries, shape) for shape in shapes]
    best = max(fits, key=lambda fit: (fit.agreeing, -fit.squares))
    off = [e for e in entries if not SCHEDULE.holds_for(*_against(best.shape, e))]
    listed = ", ".join(f"{e.lr:g} at step {e.step:g} (declared {best.shape.rate(e.step):.6g})" for e in off[:SHOWN])
    seen = f"{best.agreeing} of {best.rows} rows agree with {best.shape.text}" + (f"; not {listed}" if off else "")
    at = f"step {off[0].step:g}" if off else ""
    worst = min((_against(best.shape, e) for e in entries), key=lambda number: SCHEDULE.margin(*number))
    return judged(SCHEDULE, FAIL, worst, seen, required, rows=best.rows, where=at)


def _against(shape: Shape, entry: Entry) -> tuple[float, float, float]:
    """A logged rate, the declared one of its step, and the rounding of the log."""
    return entry.lr, shape.rate(entry.step), entry.slack


def reconstructed(log: RunLog, fit: Fit | None) -> Finding:
    """RUN-53: the schedule that fits every row does not climb again past its own total."""
    required = "a schedule that fits every row and does not climb past its own end"
    if fit is None:
        return undecided(SCHEDULE_FIT.id, WARN, "too few rows with a learning rate", required)
    if not fit.holds:
        short = f"only {fit.rows} rows" if fit.agreeing == fit.rows else f"{fit.agreeing} of {fit.rows} rows agree"
        why = f"no known schedule fits; nearest ({short}, worst {fit.worst:.3g} units of the last digit): {fit.shape.text}"
        return undecided(SCHEDULE_FIT.id, WARN, why, required, rows=fit.rows)
    shape = fit.shape
    past = sum(step + shape.shift > shape.total for step, _ in log.points("lr"))
    seen = f"{shape.text}; {fit.agreeing} of {fit.rows} rows, worst residual {fit.worst:.2g} units of the last digit"
    if shape.unclamped:
        seen += f"; {past} rows are past that total, where its progress is not clamped"
    elif shape.family in ("linear", "wsd") and min(lr for _, lr in rates(log)[-2:]) > shape.floor * 1.0001:
        seen += "; the floor was not reached, so that only the slope of the decay is determined, not its end"
    return judged(SCHEDULE_FIT, WARN, (past if shape.unclamped else 0, 0), seen, required, rows=fit.rows)


def in_band(log: RunLog, intent: Intent, fit: Fit | None) -> Finding:
    """INV-8, informative: the plateau's rate in INV-8's default band, and the nearest golden anchor."""
    band = Band()
    low, high = band.ends
    required = f"INV-8: {low:.6g} <= peak <= {high:.6g}"
    known = [lr for _, lr in rates(log) if lr > 0]
    if not known:
        return undecided(LR_BAND.id, INFO, _NO_RATE, required)
    peak = intent.peak or (fit.shape.peak if fit and fit.holds else max(known))
    distance = float(margin({"lr": peak, "on_plateau": 1.0}, band))
    seen = f"peak {peak:g}, margin {distance:+.4g}; the nearest anchor is phi^-n/2 with n = {_nearest(peak)}"
    return decided(LR_BAND.id, INFO, accepts(distance), seen, required, rows=len(known), margin=distance)


def _nearest(rate: float) -> str:
    try:
        return str(anchors.nearest_anchor(rate))
    except ValueError:
        return "beyond 80"
