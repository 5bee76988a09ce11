"""INV-2 asha-threshold: the prune threshold is safe for the declared gap.

Claim: pruning every trial whose loss at a rung is not <= threshold never prunes a trial that reaches the target, for
all learning curves whose loss at a rung is at most `gap` above its end, iff target + gap <= threshold.
Why it matters: a threshold that looks generous kills the champion early; and a threshold justified by an identity of
constants (the seed's 3.5 = phi^2 + phi^-2 + 1/2, true and beside the point) is justified by nothing.
Source: the seed's INV-2, whose theorems compare constants and never mention a learning curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import halving
from karat.core.golden import PHI
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Exact, FloatLaw, Formula, Obligation, Property
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


def as_written(value: float | int | Fraction) -> Fraction:
    """The decimal that a float was written as: 2.1 -> 21/10. What a user declares is a decimal, not a double."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


@dataclass(frozen=True)
class Certificate:
    """The declared threshold, target and gap, in bits per byte, as decimals."""

    threshold: Fraction = Fraction(7, 2)
    target: Fraction = Fraction(3, 2)
    gap: Fraction = Fraction(2)


def margin(values: Mapping[str, Any], certificate: Certificate, ops: Ops = FLOAT) -> Number:
    """threshold - (target + gap), exactly, in bits per byte, of the values in force at the rung."""
    return halving.certificate_margin(values["threshold"], values["target"], values["gap"])


CURVE = {"loss": "real", "final": "real", "threshold": "real", "target": "real", "gap": "real"}


def _curve(v: Any) -> dict[str, Any]:
    return {
        "the trial reaches the target": v.final <= v.target,
        "its loss at the rung is at most gap above its end": v.loss <= v.final + v.gap,
    }


def _certified(v: Any) -> dict[str, Any]:
    return _curve(v) | {"target + gap <= threshold": v.target + v.gap <= v.threshold}


def _survives(v: Any, should_prune: Any) -> Any:
    return should_prune(v.loss, v.threshold) == False  # noqa: E712 - symbolic too


def _wrongly_pruned(v: Any, should_prune: Any) -> Any:
    return should_prune(v.target + v.gap, v.threshold) == True  # noqa: E712


def _certificate(v: Any, distance: Any) -> Any:
    values = {"threshold": v.threshold, "target": v.target, "gap": v.gap}
    margin_there = distance(values, None, v.ops)
    return [margin_there == v.threshold - v.target - v.gap, (margin_there >= 0) == (v.target + v.gap <= v.threshold)]


def _sample(random: Random) -> dict[str, Any]:
    target = Fraction(random.randint(100, 300), 100)
    gap = Fraction(random.randint(0, 300), 100)
    final = target - Fraction(random.randint(0, 100), 100)
    loss = final + gap - Fraction(random.randint(0, 200), 100)
    threshold = target + gap + Fraction(random.randint(0, 100), 100)
    return {"loss": loss, "final": final, "threshold": threshold, "target": target, "gap": gap}


def _sample_short(random: Random) -> dict[str, Any]:
    values = _sample(random)
    return values | {"threshold": values["target"] + values["gap"] - Fraction(random.randint(1, 100), 100)}


def _seed_threshold(threshold: Fraction, gap: Fraction | None) -> Any:
    """The seed's numbers: target 1.5, this threshold, and the gap if one is declared."""

    def given(v: Any) -> dict[str, Any]:
        hypotheses = {
            "losses are positive": (v.final > 0) & (v.loss > 0),
            "the trial reaches 1.5": v.final <= Fraction(3, 2),
            f"threshold {float(threshold)}": v.threshold == threshold,
        }
        if gap is not None:
            hypotheses[f"gap {float(gap)}"] = v.loss <= v.final + gap
        return hypotheses

    return given


def _sample_seed(threshold: Fraction) -> Any:
    def sample(random: Random) -> dict[str, Any]:
        final = Fraction(random.randint(50, 150), 100)
        return {"final": final, "loss": final + Fraction(random.randint(0, 100), 100), "threshold": threshold}

    return sample


def _nan_pruned(v: Any, should_prune: Any) -> Any:
    return should_prune(v.loss, v.threshold) == True  # noqa: E712


def _compared(v: Any, should_prune: Any) -> Any:
    return should_prune(v.loss, v.threshold) == (v.loss > v.threshold)


def _champion_survives(race: Any, should_prune: Any) -> bool:
    """A simulated trial with finite rungs: if it reaches the target within the gap, no rung prunes it."""
    target, gap, slack, final, excesses = race
    threshold = target + gap + slack
    reaches = final <= target and all(excess <= gap for excess in excesses)
    return not reaches or not any(should_prune(final + excess, threshold) for excess in excesses)


def _races(st: Any) -> Any:
    hundredths = st.integers(0, 400).map(lambda n: Fraction(n, 100))
    return st.tuples(hundredths, hundredths, hundredths, hundredths, st.lists(hundredths, min_size=1, max_size=6))


def _prune_from(loss: Any, threshold: Any) -> bool:
    return not loss < threshold


_PRUNE = (halving.should_prune,)
_SEED_CURVE = {"loss": "real", "final": "real", "threshold": "real"}

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-2.sufficient", "if target + gap <= threshold, no trial that reaches the target is pruned, whatever its "
            "learning curve within the gap", _PRUNE, variables=CURVE, given=_certified, show=_survives, sample=_sample),
    Formula("INV-2.necessary", "if target + gap > threshold, the trial that ends at the target after target + gap at the "
            "rung is pruned", _PRUNE, variables={"threshold": "real", "target": "real", "gap": "real"},
            given=lambda v: {"target + gap > threshold": v.target + v.gap > v.threshold},
            show=_wrongly_pruned, sample=_sample_short),
    Formula("INV-2.certificate", "the guard's margin is threshold - target - gap, which is >= 0 iff the threshold is safe",
            (margin,), variables={"threshold": "real", "target": "real", "gap": "real"},
            show=_certificate, sample=_sample),
    Formula("INV-2.at-3.5", "threshold 3.5 with target 1.5 and the declared gap 2.0 prunes no champion", _PRUNE,
            variables=_SEED_CURVE, given=_seed_threshold(Fraction(7, 2), Fraction(2)), show=_survives,
            sample=_sample_seed(Fraction(7, 2))),
    Formula("INV-2.seed-2.65", "threshold 2.65 with target 1.5 and gap 2.0 prunes no champion", _PRUNE,
            variables=_SEED_CURVE, given=_seed_threshold(Fraction(53, 20), Fraction(2)), show=_survives,
            sample=_sample_seed(Fraction(53, 20)), must_fail=True),
    Formula("INV-2.seed-no-gap", "threshold 3.5 prunes no champion, with nothing declared about learning curves", _PRUNE,
            variables=_SEED_CURVE, given=_seed_threshold(Fraction(7, 2), None), show=_survives,
            sample=_sample_seed(Fraction(7, 2)), must_fail=True),
    Exact("INV-2.seed-identity", "phi^2 + phi^-2 + 1/2 = 7/2: true, and no reason for a threshold", (),
          show=lambda value: PHI**2 + PHI**-2 + Fraction(1, 2) == value, at=Fraction(7, 2),
          not_at=(Fraction(53, 20), Fraction(3472, 1000))),
    FloatLaw("INV-2.nan", "a NaN loss is pruned, at every threshold", _PRUNE, variables=("loss", "threshold"),
             given=lambda v: {"the loss is NaN": v.loss != v.loss}, show=_nan_pruned,
             sample=lambda random: {"loss": math.nan, "threshold": random.uniform(0, 5)}),
    FloatLaw("INV-2.compared", "a loss that is a number is pruned iff it is above the threshold, infinities included",
             _PRUNE, variables=("loss", "threshold"),
             given=lambda v: {"numbers": (v.loss == v.loss) & (v.threshold == v.threshold)}, show=_compared,
             sample=lambda random: {"loss": random.choice([random.uniform(0, 5), math.inf]),
                                    "threshold": random.uniform(0, 5)}),
    Property("INV-2.champion", "in simulated races no trial that reaches the target within the gap is pruned", _PRUNE,
             strategy=_races, holds=_champion_survives, rivals={"prune from the threshold on": (_prune_from,)},
             examples=500),
)  # fmt: skip


def bounds(certificate: Certificate) -> tuple[Bound, ...]:
    """The certificate as cited."""
    return (
        Bound("threshold", str(certificate.threshold), f"{float(certificate.threshold):g} bits per byte"),
        Bound("target", str(certificate.target), f"{float(certificate.target):g} bits per byte"),
        Bound("gap", str(certificate.gap), f"{float(certificate.gap):g} bits per byte, declared"),
    )


def required(certificate: Certificate) -> str:
    """The condition as one line."""
    total = certificate.target + certificate.gap
    return (
        f"target + gap <= threshold   {float(certificate.target):g} + {float(certificate.gap):g} = {float(total):g} "
        f"<= {float(certificate.threshold):g}"
    )


def _values(loss: float, threshold: str, target: str, gap: str) -> dict[str, Any]:
    return {"loss": loss, "threshold": Fraction(threshold), "target": Fraction(target), "gap": Fraction(gap)}


INVARIANT = Invariant(
    id="INV-2",
    slug="asha-threshold",
    statement="The prune threshold is safe for the declared gap: target + gap <= threshold.",
    why="A threshold below target + gap prunes some trial that would have reached the target.",
    unit="bits per byte",
    sources=("the seed's INV-2, corrected", "successive halving: Li et al. 2018, arXiv 1810.05934"),
    limits=(
        "The gap is declared, not derived: it is watched on every finished trial that reaches the target, and a breach "
        "voids the certificate.",
        "A trial that ends above the target says nothing about the gap of those that reach it.",
        "Safe does not mean useful: a threshold that never prunes is safe.",
    ),
    phases=(Phase.START, Phase.RUNG, Phase.FINISH),
    quantities=(
        Quantity("loss", "loss", "bits per byte", "the validation loss at the rung"),
        Quantity("threshold", "threshold", "bits per byte", "the threshold in force"),
        Quantity("target", "target", "bits per byte", "the loss that a trial has to reach"),
        Quantity("gap", "gap", "bits per byte", "how much a loss may still fall from a rung to the end"),
    ),
    parameters=Certificate(),
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {
            "loss": st.one_of(st.floats(0, 8), st.floats()),
            "threshold": st.integers(0, 500).map(lambda n: Fraction(n, 100)),
            "target": st.integers(0, 300).map(lambda n: Fraction(n, 100)),
            "gap": st.integers(0, 300).map(lambda n: Fraction(n, 100)),
        }
    ),
    holds=(
        Witness(_values(3.0, "3.5", "1.5", "2"), "the seed's threshold, with the gap declared"),
        Witness(_values(9.0, "3.3", "1.2", "2.1"), "equality, which floating point would miss: 1.2 + 2.1 > 3.3"),
    ),
    violates=(
        Witness(_values(2.6, "2.65", "1.5", "2"), "the seed's old threshold"),
        Witness(_values(2.6, "3.4999999", "1.5", "2"), "just short"),
    ),
)
