"""The ternary run's learning rate: its eight logged rates against the schedule that the report states."""

from __future__ import annotations

import z3

from karat.core.formulas import birkhoff
from karat.invariants.inv08_lr_band import SEED_LOG, seed_schedule
from karat.proofs.ledger.decimals import agrees, show
from karat.proofs.ledger.record import COUNT, REPLAY, Z3, Finding, decided
from karat.proofs.ledger.solving import proved, valid

PEAK, LOW = 0.02, 0.002


def matches(warmup: int, stable_end: int, total: int, *, clamped: bool = False, last: int = 10**9) -> list[int]:
    """The logged steps up to `last` whose rate this schedule gives to six digits."""
    found = []
    for step, logged in SEED_LOG.items():
        at = min(step, total) if clamped else step
        if step <= last and f"{seed_schedule(at, warmup, stable_end, total, PEAK, LOW):.6f}" == logged:
            found.append(step)
    return found


def _warmup(stated: int) -> Finding:
    rows = [step for step in SEED_LOG if step <= 500]
    good = matches(stated, 800, 1000, last=500)
    return Finding(good == rows, f"{len(good)} of {len(rows)} rows up to step 500")


def _stable_end(stated: int) -> Finding:
    """Whether the stated end of the plateau is among those from 500 to 999 that give all eight rows."""
    ends = [end for end in range(500, 1000) if len(matches(500, end, 1000)) == len(SEED_LOG)]
    note = "of the ends 500..999, with a declared total of 1000; no row lies between 500 and 1000"
    return Finding(stated in ends, f"all eight rows fit an end at {' or '.join(map(str, ends))}", note)


def _decay_end(stated: int) -> Finding:
    good = len(matches(500, 800, stated))
    ends = [end for end in range(900, 2001, 50) if len(matches(500, 800, end)) == len(SEED_LOG)]
    right = ", ".join(map(str, ends))
    peaks = [step for step in range(1001, 2001) if abs(seed_schedule(step, 500, 800, 1000, PEAK, LOW) - PEAK) < 1e-12]
    note = f"progress not clamped: the rate is back at its peak at steps {', '.join(map(str, peaks))}"
    return Finding(good == len(SEED_LOG), f"{good} of {len(SEED_LOG)} rows fit; all with a decay to step {right}", note)


def _final_rate(stated: str) -> Finding:
    last = max(SEED_LOG)
    return Finding(agrees(stated, float(SEED_LOG[last])), f"{SEED_LOG[last]} at step {last}", "the peak")


def _declared(stated: tuple[int, bool]) -> Finding:
    total, clamped = stated
    good = len(matches(500, 800, total, clamped=clamped))
    other = len(matches(500, 800, total, clamped=not clamped))
    return Finding(
        good == len(SEED_LOG),
        f"{good} of {len(SEED_LOG)} rows to six digits",
        f"with progress {'clamped' if not clamped else 'not clamped'}: {other} rows",
    )


def _decays(stated: str) -> Finding:
    holds = proved(stated)
    return Finding(holds, f"obligation {stated}: {'proved' if holds else 'refuted'}", "" if holds else (
        f"{show(seed_schedule(1000, 500, 800, 1000, PEAK, LOW))} at step 1000, "
        f"{show(seed_schedule(2000, 500, 800, 1000, PEAK, LOW))} at step 2000"))  # fmt: skip


def _doubly_stochastic(stated: tuple[tuple[int, ...], ...]) -> Finding:
    """a·P + (1 - a)·Q for two 2x2 matrices given by the column of the one in each row, for all a in [0, 1]."""
    a = z3.Real("a")
    weights = (a, 1 - a)
    matrix = [[z3.Sum([w for w, p in zip(weights, stated, strict=True) if p[i] == j] or [z3.RealVal(0)]) for j in range(2)]
              for i in range(2)]  # fmt: skip
    sums = [z3.Sum(row) == 1 for row in matrix] + [matrix[0][j] + matrix[1][j] == 1 for j in range(2)]
    entries = [entry >= 0 for row in matrix for entry in row]
    holds = valid(z3.Implies(z3.And(a >= 0, a <= 1), z3.And(*sums, *entries)))
    return Finding(holds, "rows and columns sum to 1, for all a in [0, 1]" if holds else "not for all a in [0, 1]")


_SCHEDULE = "learning rate schedule (WSD)"
SCHEDULE = (
    decided("C-000.16", "Warm-up is linear from 0 to 0.02 over steps 0-500", _SCHEDULE, REPLAY, _warmup, 500, 400),
    decided("C-000.17", "The rate is constant at 0.02 over steps 500-800", _SCHEDULE, COUNT, _stable_end, 800, 700),
    decided("C-000.18", "The rate decays along a cosine over steps 800-2000", _SCHEDULE, REPLAY, _decay_end, 2000, 1000),
    decided("C-000.19", "The decay ends at 0.002", _SCHEDULE, REPLAY, _final_rate, "0.002", "0.020"),
    decided("C-000.20", "The eight logged rates are those of a run with --total-steps 1000 (progress not clamped)",
            "training configuration used; loss progression", REPLAY, _declared, (1000, False), (1000, True)),
    decided("C-000.21", "The schedule is warmup-stable-decay: after the plateau the rate never rises", _SCHEDULE, Z3, _decays,
            "INV-8.seed-never-rises", "INV-8.never-rises"),
    decided("C-000.22", "mHC-lite residual connections are doubly stochastic", "components tested", Z3,
            _doubly_stochastic, tuple(birkhoff.permutations(2)), ((0, 1), (0, 0))),
)  # fmt: skip
