"""The public sources of the IGLA race: identities of phi, learning-rate bands, thresholds, the size of the search.

All of it is decided in Q(sqrt 5), by core.golden, or by enclosing logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy
import z3

from karat.core.bounds import Interval, Log, less_equal
from karat.core.formulas import halving
from karat.core.formulas.anchors import ALPHA_PHI
from karat.core.golden import PHI, Golden
from karat.proofs.ledger.decimals import Number, agrees, number, show
from karat.proofs.ledger.igla_sources_machine import MACHINE
from karat.proofs.ledger.record import COUNT, EXACT, INTERVAL, Z3, Checker, Document, Finding, decided
from karat.proofs.ledger.solving import valid

ROOT5 = 2 * PHI - 1
LEDGER = tuple(map(Fraction, ("2.3617", "2.3586", "2.3871")))
"""BPB of the public ledger's runs with learning rate 0.004 and 27,000 steps, three seeds."""


def with_root(x: Golden) -> str:
    """A number of Q(sqrt 5) as a + b·sqrt 5."""
    rational, root = x.rational + x.golden / 2, x.golden / 2
    sign = "+" if root > 0 else "-"
    return f"{rational} {sign} {'' if abs(root) == 1 else f'{abs(root)}·'}sqrt 5"


def closed_form(value: Golden) -> Checker:
    """Checks a + b·sqrt 5, given as (a, b), against the exact number."""

    def check(stated: tuple[Fraction | int, Fraction | int]) -> Finding:
        claimed = stated[0] + stated[1] * ROOT5
        return Finding(bool(claimed == value), f"{with_root(value)} = {show(value)}", f"stated: {show(claimed)}")

    return check


def ends(low: Number, high: Number) -> Checker:
    """Checks the two printed ends of a band against the expressions that they are said to be."""

    def check(stated: tuple[str, str]) -> Finding:
        holds = agrees(stated[0], low) and agrees(stated[1], high)
        return Finding(holds, f"[{show(low, 4)}, {show(high, 4)}]")

    return check


def _inside(stated: str) -> Finding:
    band = Interval(ALPHA_PHI / PHI**4, ALPHA_PHI / PHI**2)
    return Finding(band.contains(Fraction(stated)), f"the interval is {band.decimal()}")


def _half_power_inside(stated: tuple[str, str]) -> Finding:
    value = PHI**-6 / 2
    return Finding(Interval(*map(Fraction, stated)).contains(value), f"phi^-6/2 = {show(value)}")


def _width(stated: Fraction | int) -> Finding:
    """phi^2 - phi; by definition when the equation x^2 = x + 1 alone gives it, so at its other root as well."""
    width = PHI**2 - PHI
    note = "phi^2 = phi + 1 is the definition of phi; no automaton occurs"
    return Finding(bool(width == stated), f"{width}", note, vacuous=bool(width == stated == width.conjugate()))


def certified_width(states: int) -> Golden:
    """The width of the source's certified band for this many states: they do not enter."""
    return PHI**2 - PHI


def _width_of_states(stated: int) -> Finding:
    """The same width, for K = 9 and for every other K from 2 to 16: the band does not depend on K."""
    widths = {states: certified_width(states) for states in range(2, 17)}
    every = all(width == stated for width in widths.values())
    return Finding(bool(widths[9] == stated), f"{widths[9]} for every K", "K is not used", vacuous=every)


def states_in_band() -> frozenset[int]:
    """The K of 4..16 with 1.5 <= ln K <= 2.8."""
    band = Interval(Fraction("1.5"), Fraction("2.8"))
    return frozenset(k for k in range(4, 17) if band.contains(Log(Fraction(k))))


def _states(stated: frozenset[int]) -> Finding:
    found = states_in_band()
    return Finding(
        found == stated, f"K = {min(found)}..{max(found)}", "of K = 4..16, those whose ln K is in [1.5, 2.8]"
    )


def _polynomial(stated: Sequence[int]) -> Finding:
    value = Golden(0)
    for coefficient in stated:
        value = value * PHI + coefficient
    return Finding(
        bool(value == 0), f"its value at phi is {value}", "what is shown under this hypothesis is shown of nothing"
    )


def _bits(stated: Golden) -> Finding:
    value = Log(Fraction(9), Fraction(2))
    return Finding(less_equal(value, stated), f"ln 9/ln 2 = {show(value)}", f"against {show(stated)}")


def _bases(stated: str) -> Finding:
    """Whether phi is the only base > 1 whose even traces are integers: 1 + sqrt 2 is tried, with t = 6."""
    other = 1 + sympy.sqrt(2)
    traces = [sympy.radsimp(sympy.expand(other ** (2 * n) + (other - 2) ** (2 * n))) for n in range(6)]
    inverse = sympy.expand(other * (other - 2)) == 1  # so the inverse is sqrt 2 - 1; even powers drop the sign
    recurrence = all(c == 6 * b - a for a, b, c in zip(traces, traces[1:], traces[2:], strict=False))
    another = inverse and recurrence and all(t.is_Integer for t in traces)
    holds = {"the only": not another, "one": True}[stated]
    text = ", ".join(str(t) for t in traces[:4])
    return Finding(
        holds,
        f"1 + sqrt 2 gives {text}, ..." if another else "",
        "so does every root of x^2 - t x + 1, t = 3, 4, 5, ...",
    )


def _pruned(stated: str) -> Finding:
    pruned = halving.should_prune(Fraction(stated), Fraction("2.65"))
    return Finding(
        bool(pruned), f"{show(Fraction(stated))} <= 2.65: kept" if not pruned else "pruned", "a loss above is pruned"
    )


def _some_champion(stated: str) -> Finding:
    b = z3.Real("b")
    none = valid(z3.Not(z3.And(b <= stated, b > "2.65")))
    return Finding(not none, "no such b" if none else "there is one", "its witness 2.5 is not <= 2.23" if none else "")


def _product(stated: tuple[int, int]) -> Finding:
    value = math.prod(map(Fraction, ("50000", "0.60", "0.40", "0.20", "0.33", "0.50")))
    return Finding(stated[0] <= value <= stated[1], f"{show(value)} configurations")


def _hours(stated: tuple[str, str]) -> Finding:
    low, high = Fraction(2400, 320), Fraction(6000, 320)
    return Finding(agrees(stated[0], low) and agrees(stated[1], high), f"{show(low)} to {show(high)} hours")


def _decay_bound(stated: int) -> Finding:
    """The bound after this many steps against the runs of 27,000 steps at this rate."""
    bound = 2.5329 * math.exp(stated * math.log1p(-0.004 * float(ALPHA_PHI)))
    runs = ", ".join(show(bpb) for bpb in LEDGER)
    return Finding(max(LEDGER) <= bound, f"the bound is {show(bound, 2)} after {show(stated)} steps", f"its runs of 27,000 "
                   f"steps at that rate end at {runs}")  # fmt: skip


def _ladder(stated: tuple[int, ...]) -> Finding:
    """round((N - 1)/phi^2), exactly: the integer e with |(N - 1)/phi^2 - e| < 1/2."""
    found = []
    for bits in (4, 8, 12, 16, 20, 24, 32, 64, 256):
        share: Any = (bits - 1) / PHI**2 + Fraction(1, 2)
        found.append(next(e for e in range(bits) if e <= share < e + 1))
    return Finding(tuple(found) == stated, ", ".join(map(str, found)))


TASK, CORE, LR = "trinity-clara, TASK-COQ-001", "t27, CorePhi.v", "trios and t27, lr_phi_optimality.v"
NCA, BACKWARD = "trios, PhD theorems on NCA entropy", "trinity-clara, bpb_monotone_backward.v"
ALGEBRA = (
    decided("C-003S.01", "alpha_phi = phi^-3/2 = 0.11803", f"{TASK}, level 0", EXACT, number(lambda: ALPHA_PHI), "0.11803",
            "0.11808"),
    decided("C-003S.02", "Exponent widths round((N - 1)/phi^2) are 1, 3, 4, 6, 7, 9, 12, 24, 97 for N = 4, 8, 12, 16, 20, 24, "
            "32, 64, 256", "claim-audit-lab, CASE-00", EXACT, _ladder, (1, 3, 4, 6, 7, 9, 12, 24, 97),
            (1, 3, 4, 6, 7, 9, 12, 24, 98)),
    decided("C-003S.03", "[0.002, 0.007] = [alpha_phi/phi^4, alpha_phi/phi^2]", BACKWARD, EXACT,
            ends(ALPHA_PHI / PHI**4, ALPHA_PHI / PHI**2), ("0.002", "0.007"), ("0.0172", "0.0451")),
    decided("C-003S.04", "The champion's 0.004 is in [alpha_phi/phi^4, alpha_phi/phi^2]", BACKWARD, EXACT, _inside,
            "0.004", "0.02"),
    decided("C-003S.05", "[0.00382, 0.00618] = [phi^-8/2, phi^-6/2]", LR, EXACT, ends(PHI**-8 / 2, PHI**-6 / 2),
            ("0.00382", "0.00618"), ("0.01064", "0.02786")),
    decided("C-003S.06", "phi^-6/2 is in [0.00382, 0.00618] (an admitted axiom's comment)", LR, EXACT, _half_power_inside,
            ("0.00382", "0.00618"), ("0.02", "0.03")),
    decided("C-003S.07", "[0.00265, 0.00901] = [phi^-8, phi^-6]", "trios, an earlier lr_phi_optimality.v", EXACT,
            ends(PHI**-8, PHI**-6), ("0.00265", "0.00901"), ("0.02129", "0.05573")),
    decided("C-003S.08", "[0.00105, 0.0072] = [0.0072/phi^4, 0.0072]", "trinity-clara, hybrid_qk_gain.v", EXACT,
            ends(Fraction("0.0072") / PHI**4, Fraction("0.0072")), ("0.00105", "0.0072"), ("0.00275", "0.0072")),
    decided("C-003S.09", "phi^-7/2 = ~0.00382", "trios, bpb_decreases.v", EXACT, number(lambda: PHI**-7 / 2), "~0.00382",
            "~0.01722"),
    decided("C-003S.10", "phi^2 + phi^-2 + phi^-4 = 3.4721, rounded to 3.5", "trios, invariants.rs, INV-2", EXACT,
            number(lambda: PHI**2 + PHI**-2 + PHI**-4, "3 + 2 phi^-3 is 3.47214"), "3.4721", "3.1459"),
    decided("C-003S.11", "phi + 1/phi = 3", "trios, IGLA_ASHA_Bound.v, trinity_to_3", EXACT, closed_form(PHI + 1 / PHI), (3, 0),
            (0, 1)),
    decided("C-003S.12", "phi^3 = 2·sqrt 5 + 3", CORE, EXACT, closed_form(PHI**3), (3, 2), (2, 1)),
    decided("C-003S.13", "phi^4 = 3·sqrt 5 + 5", CORE, EXACT, closed_form(PHI**4), (5, 3), (Fraction(7, 2), Fraction(3, 2))),
    decided("C-003S.14", "phi^5 = 5·sqrt 5 + 8", CORE, EXACT, closed_form(PHI**5), (8, 5), (Fraction(11, 2), Fraction(5, 2))),
    decided("C-003S.15", "1/alpha_phi = 4·sqrt 5 + 6", "t27, AlphaPhi.v, since corrected", EXACT, closed_form(1 / ALPHA_PHI),
            (6, 4), (4, 2)),
    decided("C-003S.16", "alpha_phi^2 = (3 - sqrt 5)/8", "t27, AlphaPhi.v, since corrected", EXACT, closed_form(ALPHA_PHI**2),
            (Fraction(3, 8), Fraction(-1, 8)), (Fraction(9, 4), -1)),
    decided("C-003S.17", "The band [phi, phi^2] has width 1 exactly (integer, not empirical)", f"{TASK}, INV-4", EXACT, _width, 1,
            Fraction("1.3")),
    decided("C-003S.18", "K = 9 gives the band width 1", "trinity-clara, nca_entropy_band.v", COUNT, _width_of_states, 1, 2),
    decided("C-003S.19", "K = 9 is the unique K whose entropy stays in [1.5, 2.8]", NCA, INTERVAL, _states, frozenset({9}),
            frozenset(range(5, 17))),
    decided("C-003S.20", "For 4 <= K <= 16 the entropy (ln K in its sketch) is in [1.5, 2.8] iff 5 <= K <= 13", NCA, INTERVAL,
            _states, frozenset(range(5, 14)), frozenset(range(5, 17))),
    decided("C-003S.21", "The A5 polynomial phi^5 - phi^4 - 4 phi^3 + 3 phi^2 + 3 phi - 1 is 0", NCA, EXACT, _polynomial,
            (1, -1, -4, 3, 3, -1), (1, -1, -4, 3, 3, 0)),
    decided("C-003S.22", "The lower end 1.5 is phi - 0.618", NCA, EXACT, number(lambda: PHI - Fraction("0.618")), "1.5", "1.0"),
    decided("C-003S.23", "The upper end 2.8 is phi + phi^-1 - 0.382", NCA, EXACT,
            number(lambda: PHI + 1 / PHI - Fraction("0.382")), "2.8", "1.9"),
    decided("C-003S.24", "ln 9/ln 2 <= phi^2 (an axiom)", NCA, INTERVAL, _bits, PHI**2, Golden(Fraction("3.2"))),
    decided("C-003S.25", "phi is the only base above 1 whose even traces are all integers", "trios, lucas_closure_gf16.v", EXACT,
            _bases, "the only", "one"),
    decided("C-003S.26", "Threshold 2.65 prunes the champion: 2.5329 < 2.65", f"{TASK}, INV-2", EXACT, _pruned, "2.5329", "2.70"),
    decided("C-003S.27", "Some candidate with b <= 2.23 is pruned at 2.65", "trinity-clara, old_threshold_kills_champion", Z3,
            _some_champion, "2.23", "2.80"),
    decided("C-003S.28", "A warm-up of 4000 is ~ phi^16", "public sources of the race, warm-up of 4000 steps", EXACT,
            number(lambda: PHI**16), "~4000", "~2207"),
    decided("C-003S.29", "50,000 × 0.60 × 0.40 × 0.20 × 0.33 × 0.50 is 2,400 to 6,000", f"{TASK}, section 4", EXACT, _product,
            (2400, 6000), (300, 500)),
    decided("C-003S.30", "50,000 against 6,000 configurations is a speedup of 8.3", f"{TASK}, section 1", EXACT,
            number(lambda: Fraction(50_000, 6_000)), "8.3", "9.3"),
    decided("C-003S.31", "At 320 trials an hour 2,400 to 6,000 configurations take 7.5 to 19 hours", f"{TASK}, section 4", EXACT,
            _hours, ("7.5", "19"), ("7.5", "75")),
    decided("C-003S.32", "6,000 configurations take 75 hours (at the 320 trials an hour of its section 4)", f"{TASK}, section 1",
            EXACT, number(lambda: Fraction(6_000, 320), "", "hours"), "75", "19"),
    decided("C-003S.33", "BPB after t steps at rate 0.004 is at most 2.5329 (1 - 0.004 alpha_phi)^t, so below 1.50 after 27,000",
            "trios, igla_target_achievable; trios-trainer-igla, ledger", EXACT, _decay_bound, 27_000, 100),
    *MACHINE,
)  # fmt: skip

DOCUMENT = Document(
    "C-003S",
    "Public sources of the IGLA race",
    "What the issue's own public repositories say (trinity-clara, trios, t27, trios-trainer-igla, zig-golden-float, "
    "claim-audit-lab), in the versions of March to May 2026; some of it has been corrected there since.",
    ALGEBRA,
)
