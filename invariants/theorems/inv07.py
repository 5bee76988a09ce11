"""INV-7 in Coq: the rational comparison is Student's t-test of three runs, and what a gate that is met says of each run."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import victory
from karat.core.obligation import Counterpart, Obligation, Theorem

FILE = "INV07_victory_gate"


def _runs(random: Random) -> dict[str, Any]:
    """Three runs around a target: close together and far apart, two or all of them equal; in any order."""
    target = Fraction(random.randint(100, 300), 100)
    mean = target + Fraction(random.randint(-20, 20), random.choice([10, 100]))
    wide = random.choice([0, 1, 3, 30])
    runs = [mean + Fraction(random.randint(-wide, wide), 50) for _ in range(3)]
    return dict(zip("abc", runs, strict=True)) | {"target": target}


def _sample_scatter(random: Random) -> dict[str, Any]:
    runs = _runs(random)
    return {name: runs[name] for name in "abc"}


def _sample_tail(random: Random) -> dict[str, Any]:
    return {"t": Fraction(random.randint(-40, 40), random.randint(1, 9)), "scale": Fraction(random.randint(0, 9), 7)}


def _sample_significance(random: Random) -> dict[str, Any]:
    """Leads of both signs and 0."""
    return {"ahead": Fraction(random.randint(-9, 9), random.randint(1, 9)),
            "spread": Fraction(random.randint(0, 9), random.randint(1, 9)),
            "alpha": Fraction(random.randint(0, 20), random.choice([20, 40, 1000]))}  # fmt: skip


def _on_the_edge(random: Random) -> dict[str, Any]:
    """p equal to alpha, exactly: deviations 2d, -d, -d with a level x^2 / (x^2 + 2 y^2), whose roots are rational."""
    x, y = random.randint(1, 9), random.randint(7, 15)
    ahead = Fraction(random.randint(1, 20), 7)
    deviation = ahead * 2 * x * y / (3 * (2 * y * y - x * x))
    target = Fraction(random.randint(100, 300), 100)
    runs = [target - ahead / 3 + part * deviation for part in random.sample([2, -1, -1], 3)]
    return dict(zip("abc", runs, strict=True)) | {"target": target, "alpha": Fraction(x * x, x * x + 2 * y * y)}


def _sample_gate(random: Random) -> dict[str, Any]:
    """Runs on both sides of the gate and exactly at it."""
    if random.random() < 0.2:
        return _on_the_edge(random)
    return _runs(random) | {"alpha": Fraction(random.randint(0, 20), random.choice([20, 40, 1000]))}


LEAD = Counterpart(
    f"{FILE}.lead", victory.lead, f"parts ({FILE}.lead (K := on_Q) {{a}} {{b}} {{c}} {{target}})", _runs,
    run=lambda v: victory.lead([v["a"], v["b"], v["c"]], v["target"]),
)  # fmt: skip
SCATTER = Counterpart(
    f"{FILE}.scatter", victory.scatter, f"parts ({FILE}.scatter (K := on_Q) {{a}} {{b}} {{c}})", _sample_scatter,
    run=lambda v: victory.scatter([v["a"], v["b"], v["c"]]),
)  # fmt: skip
TAIL = Counterpart(
    f"{FILE}.lower_tail", victory.lower_tail, f"parts ({FILE}.lower_tail (K := on_Q) {{t}} {{scale}})", _sample_tail,
    run=lambda v: victory.lower_tail(**v),
)  # fmt: skip
SIGNIFICANCE = Counterpart(
    f"{FILE}.significance", victory.significance,
    f"parts ({FILE}.significance (K := on_Q) {{ahead}} {{spread}} {{alpha}})", _sample_significance,
    run=lambda v: victory.significance(**v),
)  # fmt: skip
GATE = Counterpart(
    f"{FILE}.gate_margin", victory.gate_margin,
    f"parts ({FILE}.gate_margin (K := on_Q) {{a}} {{b}} {{c}} {{target}} {{alpha}})", _sample_gate,
    run=lambda v: Fraction(victory.gate_margin([v["a"], v["b"], v["c"]], v["target"], v["alpha"])),
)  # fmt: skip

_TAIL, _GATE = (victory.lower_tail,), (victory.gate_margin,)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-7.coq-lead", "lead = 3 (target - mean) of three runs", (victory.lead,), file=FILE, theorem="lead_is",
            counterparts=(LEAD,)),
    Theorem("INV-7.coq-scatter", "scatter = 6 s^2 with s^2 the sample variance of three runs", (victory.scatter,), file=FILE,
            theorem="scatter_is", counterparts=(SCATTER,)),
    Theorem("INV-7.coq-density", "the derivative of F(t) = 1/2 + t / (2 sqrt(2 + t^2)) is (2 + t^2)^(-3/2), Student's density "
            "with two degrees of freedom, at every t", _TAIL, file=FILE, theorem="student_density", counterparts=(TAIL,)),
    Theorem("INV-7.coq-increasing", "F rises strictly over the reals", _TAIL, file=FILE, theorem="student_increasing",
            counterparts=(TAIL,)),
    Theorem("INV-7.coq-symmetric", "F(-t) = 1 - F(t) at every t", _TAIL, file=FILE, theorem="student_symmetric",
            counterparts=(TAIL,)),
    Theorem("INV-7.coq-values", "0 < F(t) < 1 at every t", _TAIL, file=FILE, theorem="student_range", counterparts=(TAIL,)),
    Theorem("INV-7.coq-tail", "1 - F(t) < 1 / (2 t^2) for every t > 0", _TAIL, file=FILE, theorem="student_tail",
            counterparts=(TAIL,)),
    Theorem("INV-7.coq-exact", "of three runs that differ the significance is positive exactly where F(t) < alpha, with t = "
            "(mean - target) / sqrt(s^2/3): for every level 0 <= alpha <= 1/2",
            (victory.significance, victory.lead, victory.scatter, *_TAIL), file=FILE, theorem="significance_is_the_t_test",
            counterparts=(SIGNIFICANCE, LEAD, SCATTER, TAIL)),
    Theorem("INV-7.coq-gate", "the gate is met exactly where the three runs differ and F(t) < alpha: for every level "
            "0 <= alpha <= 1/2", (*_GATE, *_TAIL), file=FILE, theorem="gate_is_the_t_test", counterparts=(GATE, TAIL)),
    Theorem("INV-7.coq-all-below", "where the gate is met every one of the three runs is below the target, at every level "
            "with 0 <= alpha (1 - alpha) <= 1/12", _GATE, file=FILE, theorem="met_means_all_below", counterparts=(GATE,)),
    Theorem("INV-7.coq-levels", "every level from 0 to 1/20 is one of these: 0 <= alpha (1 - alpha) <= 1/12", (), file=FILE,
            theorem="declared_levels_mean_all_below"),
    Theorem("INV-7.coq-looser", "at every level with alpha (1 - alpha) > 1/12 the gate is met by some three runs, for "
            "some target, of which one is not below it", _GATE, file=FILE, theorem="looser_levels_do_not",
            counterparts=(GATE,)),
    Theorem("INV-7.coq-lowering", "lowering all three runs by the same amount >= 0 never loses the gate, at any level "
            "from 0 to 1", _GATE, file=FILE, theorem="lowering_all_keeps_the_gate", counterparts=(GATE,)),
    Theorem("INV-7.coq-not-enough", "some three different runs, all below the declared target, do not meet the gate at "
            "the declared level, contrary to the seed", _GATE, file=FILE, theorem="all_below_is_not_enough",
            counterparts=(GATE,)),
)  # fmt: skip
