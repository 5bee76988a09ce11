"""INV-4 in Coq: the range of entropy on any number of points, where its ends are reached, and ends that never bind."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core.formulas import entropy, schedule
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.ops import FloatOps, Number
from karat.invariants import inv04_nca_entropy_band as inv04

FILE = "INV04_nca_entropy_band"
SQUARE = "(fun p => (p * p)%K)"


class _Squares(FloatOps):
    """p p in the place of p ln p: what is compared is how the terms are put together, exactly."""

    def xlogx(self, x: Number) -> Number:
        return x * x


def _counts(random: Random) -> list[Fraction]:
    counts = [Fraction(random.randint(0, 12), random.choice([1, 1, 3])) for _ in range(random.randint(1, 10))]
    counts[random.randrange(len(counts))] += 1
    return counts


def _sample_distribution(random: Random) -> dict[str, Any]:
    counts = _counts(random)
    return {"p": random.choice([counts, entropy.frequencies(counts)])}


def _held(random: Random) -> dict[str, Any]:
    """Below, inside, above, at either end, and an interval that is empty."""
    low = Fraction(random.randint(-20, 20), random.randint(1, 9))
    high = low + Fraction(random.randint(-4, 20), random.randint(1, 9))
    x = random.choice([low, high, (low + high) / 2, low - 1, high + 1, Fraction(random.randint(-40, 40), 7)])
    return {"x": x, "low": low, "high": high}


def _distance(v: Mapping[str, Any]) -> Any:
    declared: Any = SimpleNamespace(ends=(v["low"], v["high"]))
    return inv04.margin({"entropy": v["x"]}, declared)


CLAMP = Counterpart(
    "Clamp.clamp", schedule.clamp, "parts (Clamp.clamp (K := on_Q) {x} {low} {high})", _held,
    run=lambda v: schedule.clamp(**v),
)  # fmt: skip
ENTROPY = Counterpart(
    f"{FILE}.entropy_nats", entropy.entropy_nats,
    f"parts ({FILE}.entropy_nats (K := on_Q) {SQUARE} (length {{p}}) (at_place (K := on_Q) {{p}}))",
    _sample_distribution, run=lambda v: entropy.entropy_nats(v["p"], _Squares()),
)  # fmt: skip
FREQUENCIES = Counterpart(
    f"{FILE}.frequencies", entropy.frequencies,
    f"map parts (vector (K := on_Q) (length {{counts}}) ({FILE}.frequencies (K := on_Q) (length {{counts}}) "
    "(at_place (K := on_Q) {counts})))",
    lambda random: {"counts": _counts(random)}, run=lambda v: entropy.frequencies(v["counts"]),
)  # fmt: skip
MARGIN = Counterpart(
    f"{FILE}.margin", inv04.margin, f"parts ({FILE}.margin (K := on_Q) {{x}} {{low}} {{high}})", _held, run=_distance
)

_ENTROPY, _COUNTS = (entropy.entropy_nats,), (entropy.frequencies, entropy.entropy_nats)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-4.coq-range", "0 <= H <= ln K nats for every distribution on K points, for every K", _ENTROPY, file=FILE,
            theorem="entropy_range", counterparts=(ENTROPY,)),
    Theorem("INV-4.coq-uniform", "H = ln K at the uniform distribution on K points, for every K >= 1", _ENTROPY, file=FILE,
            theorem="entropy_of_uniform", counterparts=(ENTROPY,)),
    Theorem("INV-4.coq-only-uniform", "a distribution on K points with H = ln K is the uniform one, for every K", _ENTROPY,
            file=FILE, theorem="entropy_full_only_at_uniform", counterparts=(ENTROPY,)),
    Theorem("INV-4.coq-only-points", "a distribution with H = 0 gives each point the probability 0 or 1, for every K", _ENTROPY,
            file=FILE, theorem="entropy_zero_only_at_points", counterparts=(ENTROPY,)),
    Theorem("INV-4.coq-frequencies", "counts that are >= 0 and not all 0, over their sum, are >= 0 and add up to 1",
            (entropy.frequencies,), file=FILE, theorem="frequencies_are_a_distribution", counterparts=(FREQUENCIES,)),
    Theorem("INV-4.coq-clamped", "held to [0, ln K], the entropy of the frequencies of counts that are >= 0 and not "
            "all 0 is itself: over the reals the clamp changes nothing", (*_COUNTS, schedule.clamp), file=FILE,
            theorem="entropy_of_counts_is_entropy", counterparts=(ENTROPY, FREQUENCIES, CLAMP)),
    Theorem("INV-4.coq-band", "the guard's margin is >= 0 exactly where low <= H <= high, over the reals", (inv04.margin,),
            file=FILE, theorem="margin_is_the_band", counterparts=(MARGIN,)),
    Theorem("INV-4.coq-never-binds", "ln 9 < phi^2 < 2.8: in nats both of these upper ends lie above ln 9", (),
            file=FILE, theorem="upper_ends_never_bind"),
    Theorem("INV-4.coq-bits", "2.8 < log2 9: in bits the seed's upper end lies below log2 9", (), file=FILE,
            theorem="upper_end_binds_in_bits"),
    Theorem("INV-4.coq-nine-states", "every distribution on nine states has less than phi^2 nats of entropy", _ENTROPY, file=FILE,
            theorem="nine_states_below_phi_squared", counterparts=(ENTROPY,)),
    Theorem("INV-4.coq-certified", "the certified band [phi, min(phi^2, ln 9)] is not empty, begins above 1.5, and ends where "
            "the default band ends", (), file=FILE, theorem="certified_inside_default"),
    Theorem("INV-4.coq-width", "phi^2 - phi = 1", (), file=FILE, theorem="certified_width"),
)  # fmt: skip
