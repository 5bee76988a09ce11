"""Losses, steps and tokens of a run: finite, not rising, plausible, counted once.

The learning-rate checks are in `lr_checks.py`. What is a heuristic says WARN.
"""

from __future__ import annotations

import itertools
import math
import statistics

from karat.core.run_log import RunLog
from karat.invariants import inv01_descent as inv01
from karat.invariants.run.finding import Finding, judged, undecided
from karat.invariants.run.intent import Intent
from karat.invariants.run.rule import Severity
from karat.invariants.run.run09_finite import RULE as FINITE
from karat.invariants.run.run28_first_loss import FAR, MORE, most
from karat.invariants.run.run28_first_loss import RULE as FIRST_LOSS
from karat.invariants.run.run47_loss_trend import RULE as TREND
from karat.invariants.run.run48_validation import MOST_BELOW
from karat.invariants.run.run48_validation import RULE as VALIDATION
from karat.invariants.run.run50_log_steps import RULE as STEPS
from karat.invariants.run.run51_tokens import RULE as TOKENS
from karat.invariants.run.run56_claimed_reduction import RULE as CLAIMED
from karat.invariants.run.run56_claimed_reduction import TOLERANCE

FAIL, WARN = Severity.FAIL, Severity.WARN
LOSSES = ("loss", "val_loss", "bpb", "grad_norm")
LEAST_WINDOW = 20
"""Rows: with fewer in a window a sample variance is too uncertain for six standard errors to mean much."""
IMPLAUSIBLE = 0.5
"""A validation loss below this share of the training loss, at three rows or more: other data, other unit, or a leak."""
UNEVEN = 0.01
"""Relative difference of tokens per step from their median that is called uneven."""


def finite(log: RunLog) -> Finding:
    """RUN-9: every logged loss and gradient norm is a finite number."""
    required = "finite losses and gradient norms"
    logged = [(place, c, x) for c in LOSSES for place, x in log.series(c)]
    if not logged:
        return undecided(FINITE.id, FAIL, "the log has no loss", required)
    bad = [(place, c, x) for place, c, x in logged if not math.isfinite(x)]
    seen = ", ".join(f"{log.columns[c]} = {x} at {place}" for place, c, x in bad[:4]) or f"{len(logged)} numbers are"
    return judged(FINITE, FAIL, (len(bad), 0), seen, required, rows=len(logged), where=bad[0][0] if bad else "")


def not_rising(log: RunLog, window: int | None = None) -> Finding:
    """RUN-47: INV-1's test on windows of rows, each against the one before it. STATISTICAL."""
    losses = [x for _, x in log.points("loss") if math.isfinite(x)]
    size = window or max(LEAST_WINDOW, min(inv01.DEFAULT.window, len(losses) // 2))
    declared = inv01.Windows(size, inv01.DEFAULT.z, inv01.DEFAULT.tolerance)
    required = f"no window of rows rises above the one before it, by INV-1 ({size} rows, z = {declared.z:g})"
    if len(losses) < 2 * size:
        why = f"{len(losses)} rows with a training loss; two windows of {size} are needed"
        return undecided(TREND.id, WARN, why, required, rows=len(losses))
    steps = [s for s, x in log.points("loss") if math.isfinite(x)]
    margins = {}
    for start in range(0, len(losses) - 2 * size + 1, size):
        margins[start] = float(inv01.margin(inv01.observe(losses[start : start + 2 * size]), declared))
    worst = min(margins, key=lambda start: margins[start])
    rising = [start for start, distance in margins.items() if not TREND.holds_for(distance, 0.0)]
    seen = f"{len(rising)} of {len(margins)} pairs of windows rise; worst margin {margins[worst]:+.4g}"
    seen += f" around step {steps[worst + size]:g}"
    at = f"step {steps[worst + size]:g}"
    return judged(TREND, WARN, (margins[worst], 0.0), seen, required, rows=len(losses), where=at)


def plausible_validation(log: RunLog) -> Finding:
    """RUN-48: the validation loss is not implausibly far below the training loss of its step."""
    required = f"validation loss >= {IMPLAUSIBLE:g} of the training loss before it"
    train = [(s, x) for s, x in log.points("loss") if math.isfinite(x)]
    pairs = []
    for step, val in log.points("val_loss"):
        before = [x for s, x in train if s <= step][-1:]
        if before and math.isfinite(val):
            pairs.append((step, before[0], val))
    if len(pairs) < 3:
        why = f"{len(pairs)} rows with a training and a validation loss; three are needed"
        return undecided(VALIDATION.id, WARN, why, required, rows=len(pairs))
    below = [(s, a, b) for s, a, b in pairs if b < IMPLAUSIBLE * a]
    seen = f"{len(below)} of {len(pairs)} are below" + (
        f": {below[-1][2]:g} against {below[-1][1]:g} at step {below[-1][0]:g}" if below else ""
    )
    return judged(VALIDATION, WARN, (len(below), MOST_BELOW), seen, required, rows=len(pairs))


def steps_in_order(log: RunLog) -> Finding:
    """RUN-50: step numbers rise from row to row, each once. A log that a resumed run went on with repeats some."""
    required = "step numbers that rise, each once"
    steps = [(row.place, row.step) for row in log.rows if row.step is not None]
    if len(steps) < 2:
        return undecided(STEPS.id, WARN, f"{len(steps)} rows with a step", required, rows=len(steps))
    pairs = list(itertools.pairwise(steps))
    wrong = [(place, a, b) for (_, a), (place, b) in pairs if b <= a]
    listed = ", ".join(f"{a:g} then {b:g} at {place}" for place, a, b in wrong[:4])
    seen = f"{len(wrong)} out of order: {listed}" if wrong else f"{steps[0][1]:g} to {steps[-1][1]:g}"
    return judged(STEPS, WARN, (len(wrong), 0), seen, required, rows=len(steps), where=wrong[0][0] if wrong else "")


def even_tokens(log: RunLog) -> Finding:
    """RUN-51: the tokens per step are the same between any two rows; the last, which may be short, is left out."""
    required = f"tokens per step within {UNEVEN:.0%} of their median"
    points = [(s, t) for s, t in log.points("tokens") if math.isfinite(t)]
    if len(points) < 4:
        why = f"{len(points)} rows with a number of tokens; four are needed"
        return undecided(TOKENS.id, WARN, why, required, rows=len(points))
    pairs = list(itertools.pairwise(points))[:-1]
    per = [((t - a) / (s - b), s, log.digits["tokens"].unit(t) / (s - b)) for (b, a), (s, t) in pairs]
    if all(x == 0 for x, _, _ in per):
        return judged(TOKENS, WARN, (0, 0), f"{points[0][1]:g} at every row", required, rows=len(points))
    middle = statistics.median(x for x, _, _ in per)
    wrong = [(x, s) for x, s, slack in per if abs(x - middle) > UNEVEN * abs(middle) + slack]
    seen = f"median {middle:g}" + (
        f"; {len(wrong)} differ: {wrong[0][0]:g} up to step {wrong[0][1]:g}" if wrong else ""
    )
    at = f"step {wrong[0][1]:g}" if wrong else ""
    off = len(wrong) if middle > 0 else len(per)  # tokens that become fewer are wrong in every pair
    return judged(TOKENS, WARN, (off, 0), seen, required, rows=len(points), where=at)


def first_loss(log: RunLog, intent: Intent) -> Finding:
    """RUN-28: the first logged loss is not far above ln(vocab), the loss in nats of a uniform guess."""
    required = f"first loss <= {FAR:g} ln(vocab) + {MORE:g}"
    losses = [p for p in log.points("loss") if math.isfinite(p[1])]
    if not losses:
        return undecided(FIRST_LOSS.id, WARN, "the log has no training loss with a step", required)
    if intent.vocab is None or intent.vocab < 2:
        return undecided(FIRST_LOSS.id, WARN, "no number of classes is declared (--vocab)", required)
    step, loss = losses[0]
    uniform = math.log(intent.vocab)
    seen = f"{loss:g} at step {step:g} is {loss / uniform:.3g} times ln {intent.vocab} = {uniform:.4g} nats"
    return judged(FIRST_LOSS, WARN, (loss, most(intent.vocab)), seen, required, rows=1, where=f"step {step:g}")


def reduction(log: RunLog, intent: Intent) -> Finding:
    """RUN-56: a claimed loss reduction follows from the log (FAIL), and not from a bad first loss alone (WARN)."""
    required = "the claimed percentage follows from the log, and starts from no more than a uniform guess"
    losses = [x for _, x in log.points("loss") if math.isfinite(x)]
    if intent.reduction is None:
        return undecided(CLAIMED.id, WARN, "no reduction is claimed", required)
    if len(losses) < 2 or losses[0] <= 0:
        return undecided(CLAIMED.id, WARN, "fewer than two rows with a positive loss", required)
    first, last = losses[0], losses[-1]
    found = 100 * (first - last) / first
    seen = f"{intent.cite('reduction')} %; {first:g} to {last:g} is {found:.1f} %"
    claim = (found, intent.reduction, TOLERANCE)
    if not CLAIMED.holds_for(*claim):
        return judged(CLAIMED, FAIL, claim, seen, required, rows=2)
    uniform = math.log(intent.vocab) if intent.vocab and intent.vocab > 1 else None
    if uniform is None or first <= uniform:
        return judged(CLAIMED, WARN, claim, seen, required, rows=2)
    seen += f", of which a uniform guess alone reaches {100 * (first - uniform) / first:.1f} %"
    earned = 100 * (uniform - last) / uniform
    seen += f"; from ln {intent.vocab} it is {earned:.1f} %"
    return judged(CLAIMED, WARN, (earned, intent.reduction, TOLERANCE), seen, required, rows=2)
