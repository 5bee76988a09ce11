"""INV-6 in Coq: the decay along its cosine at every step, and averages that keep to their bounds over any number of updates."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core.formulas import ema
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.ops import FloatOps, Number
from karat.invariants import inv06_ema_decay as inv06

FILE = "INV06_ema_decay"
LINE = "(fun x => (one - of_Z 2 * x)%K)"
QUANTITIES = ("decay", "scheduled", "previous", "outside")


class _Line(FloatOps):
    """1 - 2x in the place of cos(pi x), with which it agrees at 0, 1/2 and 1: what surrounds it is compared, exactly."""

    def cospi(self, x: Number) -> Number:
        return 1 - 2 * x


def _band(random: Random) -> dict[str, Any]:
    """Bands as declared, of one point, and turned round."""
    start = Fraction(random.randint(-10, 10), random.randint(1, 9))
    width = Fraction(random.randint(1, 9), random.randint(1, 9))
    return {"start": start, "end": start + random.choice([width, width, width, width, Fraction(0), Fraction(-1)])}


def _sample_blend(random: Random) -> dict[str, Any]:
    cosine = random.choice([Fraction(1), Fraction(-1), Fraction(random.randint(-12, 12), 9)])
    return {"cosine": cosine} | _band(random)


def _sample_decay(random: Random) -> dict[str, Any]:
    """The first step, the last one, in between, and past the end."""
    total = random.randint(1, 60)
    step = random.choice([0, total, random.randint(0, total), random.randint(0, total), total + random.randint(1, 60)])
    return {"step": step, "total": total} | _band(random)


def _sample_update(random: Random) -> dict[str, Any]:
    """Decays in [0, 1] and outside it, weights on both sides of the average and equal to it."""
    average = Fraction(random.randint(-20, 20), random.randint(1, 9))
    weight = random.choice([average, *(Fraction(random.randint(-20, 20), random.randint(1, 9)) for _ in range(5))])
    decay = Fraction(random.randint(-5, 25), 20)
    return {"average": average, "weight": weight, "decay": decay}


def _sample_observation(random: Random) -> dict[str, Any]:
    """Each of the five distances is the least at some points, and 0 at some."""
    parts = [random.choice([0, random.randint(0, 90), random.randint(-10, 90)]) for _ in range(5)]
    decay = Fraction(random.randint(0, 100), 100)
    inside, below, off, risen, held = (Fraction(part, 100) for part in parts)
    return {"decay": decay, "scheduled": decay + off, "previous": decay - risen, "outside": -held, "low": decay - inside,
            "high": decay + below}  # fmt: skip


def _along_a_line(step: int, total: int, start: Fraction, end: Fraction) -> Any:
    """The steps are Fractions, so that a quotient of two is not a double."""
    return ema.decay_at(Fraction(step), Fraction(total), start, end, _Line())


def _distance(v: Mapping[str, Any]) -> Any:
    declared: Any = SimpleNamespace(ends=(v["low"], v["high"]))
    return inv06.margin({name: v[name] for name in QUANTITIES}, declared)


BLEND = Counterpart(
    f"{FILE}.blend", ema.blend, f"parts ({FILE}.blend (K := on_Q) {{cosine}} {{start}} {{end}})", _sample_blend,
    run=lambda v: ema.blend(**v),
)  # fmt: skip
DECAY = Counterpart(
    f"{FILE}.decay_at", ema.decay_at,
    f"parts ({FILE}.decay_at (K := on_Q) {LINE} (of_Z {{step}}) (of_Z {{total}}) {{start}} {{end}})", _sample_decay,
    run=lambda v: _along_a_line(**v),
)  # fmt: skip
UPDATE = Counterpart(
    f"{FILE}.averaged", ema.averaged, f"parts ({FILE}.averaged (K := on_Q) {{average}} {{weight}} {{decay}})",
    _sample_update, run=lambda v: ema.averaged(**v),
)  # fmt: skip
MARGIN = Counterpart(
    f"{FILE}.margin", inv06.margin,
    f"parts ({FILE}.margin (K := on_Q) {{decay}} {{scheduled}} {{previous}} {{outside}} {{low}} {{high}})",
    _sample_observation, run=_distance,
)  # fmt: skip

_DECAY, _UPDATE = (ema.decay_at,), (ema.averaged,)
_CURVE = (DECAY, BLEND)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-6.coq-band", "for start <= end and every total but 0 the decay is in [start, end] at every real step",
            _DECAY, file=FILE, theorem="decay_in_band", counterparts=_CURVE),
    Theorem("INV-6.coq-cosine", "for total > 0 and start <= end the decay up to its total is end - (end - start)(1 + "
            "cos(pi step/total))/2: over the reals the clamp changes nothing", _DECAY, file=FILE, theorem="decay_is",
            counterparts=_CURVE),
    Theorem("INV-6.coq-begins", "for total > 0 and start <= end the decay of step 0 is the start", _DECAY, file=FILE,
            theorem="decay_begins", counterparts=_CURVE),
    Theorem("INV-6.coq-ends", "for total > 0 and start <= end the decay is the end from its total on", _DECAY,
            file=FILE, theorem="decay_ends", counterparts=_CURVE),
    Theorem("INV-6.coq-rises", "where start < end the decay rises strictly from any real step >= 0 to any later one up "
            "to its total: it is never stuck", _DECAY, file=FILE, theorem="decay_rises", counterparts=_CURVE),
    Theorem("INV-6.coq-never-falls", "for total > 0 and start <= end the decay never falls from any real step >= 0 to "
            "any later one, past the total too", _DECAY, file=FILE, theorem="decay_never_falls", counterparts=_CURVE),
    Theorem("INV-6.coq-declared", "for every total > 0 the declared decay is in [0.996, 1] at every real step, 0.996 "
            "at step 0, and 1 from the total on", _DECAY, file=FILE, theorem="declared_decay", counterparts=_CURVE),
    Theorem("INV-6.coq-hull", "over the reals the updated average lies between the old one and the weight, for any "
            "decay whatever", _UPDATE, file=FILE, theorem="update_in_hull", counterparts=(UPDATE,)),
    Theorem("INV-6.coq-mixture", "over the reals the updated average is decay·average + (1 - decay)·weight for a decay "
            "in [0, 1]: holding it changes nothing", _UPDATE, file=FILE, theorem="update_is_the_mixture",
            counterparts=(UPDATE,)),
    Theorem("INV-6.coq-bounds", "bounds that hold of the start and of every weight hold of the average after any number of "
            "updates, whatever the decays", _UPDATE, file=FILE, theorem="average_stays_in_bounds", counterparts=(UPDATE,)),
    Theorem("INV-6.coq-approaches", "for decays in [0, 1] and a weight that stands still, average - weight is the "
            "product of the decays times what it was at the start, after any number of updates", _UPDATE, file=FILE,
            theorem="average_approaches", counterparts=(UPDATE,)),
    Theorem("INV-6.coq-guard", "over the reals the guard's margin is >= 0 exactly where the decay is in the band, on "
            "its schedule, not below the one before, and no average is outside its hull", (inv06.margin,), file=FILE,
            theorem="margin_is_the_guard", counterparts=(MARGIN,)),
)  # fmt: skip
