"""INV-9's theorems in Coq: the gain of scores and their second difference, for every head dimension.

The obligations of the invariant decide heads of 1 to 4 coordinates; the theorems say the same of every n. Square roots
are those of the reals; that a double's square root is near enough is the obligation INV-9.in-force.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core.formulas import attention
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.invariants import inv09_qk_gain as inv09

_FILE = "INV09_qk_gain"


def _number(random: Random) -> Fraction:
    return Fraction(random.randint(-6, 6), random.choice([1, 1, 2, 3]))


def _ratio(random: Random) -> dict[str, Any]:
    return {"gain": _number(random), "root": Fraction(random.randint(1, 16), random.choice([1, 2, 3]))}


def _head(random: Random) -> dict[str, Any]:
    n = random.randint(0, 5)
    return {"n": n, "q": [_number(random) for _ in range(n)], "k": [_number(random) for _ in range(n)],
            "scale": _number(random)}  # fmt: skip


def _four(random: Random) -> dict[str, Any]:
    return {name: _number(random) for name in ("near", "right", "below", "across")}


def _readings(random: Random) -> dict[str, Any]:
    """Gains below, at, between and above the ends; slack and depth of either sign, equal now and then."""
    low = Fraction(random.randint(0, 4), 2)
    names = ("tolerance", "deviation", "spread", "floor")
    return {"low": low, "high": low + Fraction(random.randint(0, 2), 2), "gain": Fraction(random.randint(0, 7), 2),
            **{name: Fraction(random.randint(0, 5), 2) for name in names}}  # fmt: skip


def _running_margin(v: Mapping[str, Any]) -> Any:
    declared: Any = SimpleNamespace(ends=(v["low"], v["high"]), tolerance=v["tolerance"], floor=v["floor"])
    return inv09.margin({name: v[name] for name in ("gain", "deviation", "spread")}, declared)


SCALE = Counterpart(
    f"{_FILE}.score_scale", attention.score_scale, f"parts ({_FILE}.score_scale (K := on_Q) {{gain}} {{root}})",
    _ratio, run=lambda v: attention.score_scale(**v),
)  # fmt: skip
SCORE = Counterpart(
    f"{_FILE}.score", attention.score,
    f"parts ({_FILE}.score (K := on_Q) (Z.to_nat {{n}}) (at_place (K := on_Q) {{q}}) (at_place (K := on_Q) {{k}}) {{scale}})",
    _head, run=lambda v: attention.score(v["q"], v["k"], v["scale"]),
)  # fmt: skip
INTERACTION = Counterpart(
    f"{_FILE}.interaction", attention.interaction,
    f"parts ({_FILE}.interaction (K := on_Q) {{near}} {{right}} {{below}} {{across}})",
    _four, run=lambda v: attention.interaction(**v),
)  # fmt: skip
MARGIN = Counterpart(
    f"{_FILE}.margin", inv09.margin,
    f"parts ({_FILE}.margin (K := on_Q) {{low}} {{high}} {{gain}} {{tolerance}} {{deviation}} {{spread}} {{floor}})",
    _readings, run=_running_margin,
)  # fmt: skip

_SCORES = (attention.score, attention.interaction)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-9.coq-gain", "phi^2 = phi + 1 = (3 + sqrt 5) / 2", (), file=_FILE, theorem="golden_gain_value"),
    Theorem("INV-9.coq-ends", "the declared ends of the gain phi^2 enclose it, and are 2^-51 apart", (), file=_FILE,
            theorem="golden_gain_enclosed"),
    Theorem("INV-9.coq-scale", "over the reals the scale times sqrt d is the gain, and its square times d the gain's "
            "square, for every gain and every real d > 0", (attention.score_scale,), file=_FILE,
            theorem="scale_times_root", counterparts=(SCALE,)),
    Theorem("INV-9.coq-score", "over the reals the score of a head of n coordinates is gain · q.k / sqrt n, for every n >= 1",
            (attention.score, attention.score_scale), file=_FILE, theorem="score_has_the_gain", counterparts=(SCORE, SCALE)),
    Theorem("INV-9.coq-bilinear", "over the reals scores are linear in q and in k, proportional to the scale, and the "
            "same with q and k exchanged, for every n", (attention.score,), file=_FILE, theorem="score_is_bilinear",
            counterparts=(SCORE,)),
    Theorem("INV-9.coq-bounded", "over the reals no score exceeds |scale| |q| |k| in size, for every n",
            (attention.score,), file=_FILE, theorem="score_is_bounded", counterparts=(SCORE,)),
    Theorem("INV-9.coq-interaction", "over the reals the second difference of scores is scale · (q1 - q2).(k1 - k2), "
            "for every n", _SCORES, file=_FILE, theorem="interaction_factors", counterparts=(SCORE, INTERACTION)),
    Theorem("INV-9.coq-queries", "for a scale that is not 0 the second difference over the reals is 0 for all pairs of "
            "k exactly where the two q are the same, for every n", _SCORES, file=_FILE,
            theorem="scores_tell_queries_apart", counterparts=(SCORE, INTERACTION)),
    Theorem("INV-9.coq-keys", "for a scale that is not 0 the second difference over the reals is 0 for all pairs of q "
            "exactly where the two k are the same, for every n", _SCORES, file=_FILE, theorem="scores_tell_keys_apart",
            counterparts=(SCORE, INTERACTION)),
    Theorem("INV-9.coq-margin", "over the reals the margin is >= 0 exactly where the gain is between its ends, the deviation "
            "within the tolerance and the spread at least the floor", (inv09.margin,), file=_FILE, theorem="margin_accepts",
            counterparts=(MARGIN,)),
)  # fmt: skip
