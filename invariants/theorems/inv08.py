"""INV-8 in Coq: the schedules over the reals, and the anchors with their one nearest to every positive rate."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import anchors, schedule
from karat.core.golden import Golden
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.core.ops import FloatOps, Number
from karat.invariants import inv08_lr_band


class _ParabolaForCosine(FloatOps):
    """A rational stand-in for cos(pi x), the same in Coq: 2 - 3 x^2, outside [-1, 1] at both ends, where the clamp acts."""

    def cospi(self, x: Number) -> Number:
        return 2 - 3 * x * x


_PARABOLA = _ParabolaForCosine()
_COSPI = "(fun t : on_Q => (of_Z 2 - of_Z 3 * t * t)%K)"


def _clamp_point(random: Random) -> dict[str, Any]:
    """Small numbers: x on an end is common, and low above high occurs."""
    return {name: Fraction(random.randint(-4, 4), random.choice([1, 1, 2])) for name in ("x", "low", "high")}


def _rates(random: Random) -> dict[str, Any]:
    """Mostly floor <= peak, as declared; the other way about too, where the clamp meets crossed ends."""
    return {"peak": Fraction(random.randint(0, 6), 2), "floor": Fraction(random.randint(-1, 4), 3)}


def _decay_point(random: Random) -> dict[str, Any]:
    """Steps before, in and after a decay, on both its ends, and halfway between two."""
    start = Fraction(random.randint(0, 5))
    end = start + random.randint(1, 6)
    step = random.choice([start, end, start + Fraction(random.randint(-4, 16), 2)])
    return {"step": step, "start": start, "end": end} | _rates(random)


def _ramp_point(random: Random) -> dict[str, Any]:
    return {"step": Fraction(random.randint(-2, 8)), "warmup": Fraction(random.randint(1, 6))} | {
        "peak": Fraction(random.randint(-1, 6), 2)
    }


def _schedule_point(random: Random) -> dict[str, Any]:
    """Each phase may be empty; steps on every boundary."""
    warmup = Fraction(random.randint(0, 4))
    stable_end = warmup + random.randint(0, 4)
    total = stable_end + random.randint(0, 5)
    step = random.choice([warmup, stable_end, total, Fraction(random.randint(0, 28), 2)])
    return {"step": step, "warmup": warmup, "stable_end": stable_end, "total": total} | _rates(random)


def _cosine_point(random: Random) -> dict[str, Any]:
    values = _schedule_point(random)
    del values["stable_end"]
    return values


def _seed_point(random: Random) -> dict[str, Any]:
    """As the schedules, with a decay that is not empty: the seed divides by its length."""
    values = _schedule_point(random)
    return values | {"total": values["total"] + 1}


def _anchor_point(random: Random) -> dict[str, Any]:
    return {"n": random.randint(-30, 30)}


def _band_point(random: Random) -> dict[str, Any]:
    return {"n": random.randint(-12, 20), "k": random.randint(0, 4)}


def _rate_near(random: Random, n: int) -> Fraction:
    """A rational near anchor n: close by, on either side of the points halfway to its neighbours, or up to a few anchors off."""
    percent = random.choice([100, 78, 79, 127, 128, random.randint(30, 300)])
    return Fraction(round(float(anchors.anchor(n)) * 2**20), 2**20) * Fraction(percent, 100)


def _nearer_point(random: Random) -> dict[str, Any]:
    """Rates around golden numbers, and one in four where the two sides are equal."""
    low = (Fraction(random.randint(-3, 9), 2), Fraction(random.randint(-3, 9), 2))
    if random.random() < 0.25:
        side = Fraction(random.randint(1, 9), 3)
        return {"rate": side, "low": (side, Fraction(0)), "high": (side, Fraction(0))}
    high = (Fraction(random.randint(-3, 9), 2), Fraction(random.randint(-3, 9), 2))
    product = Golden(*low) * Golden(*high)
    root = Fraction(round(16 * abs(float(product)) ** 0.5), 16)
    return {"rate": root + Fraction(random.randint(-2, 2), 16), "low": low, "high": high}


def _nearest_point(random: Random) -> dict[str, Any]:
    n = random.randint(-12, 14)
    return {"rate": _rate_near(random, n), "n": n + random.choice([-1, 0, 0, 1])}


def _searched_point(random: Random) -> dict[str, Any]:
    return {"rate": _rate_near(random, random.randint(-12, 14))}


def _golden_point(random: Random) -> dict[str, Any]:
    """All four sign patterns and zeros, and neighbours of Fibonacci quotients, where the two squares are close."""
    if random.random() < 0.5:
        return {"x": (Fraction(random.randint(-5, 5), 2), Fraction(random.randint(-5, 5), 3))}
    a, b = random.choice([(3, 2), (5, 3), (8, 5), (13, 8), (987, 610)])
    sign = random.choice([-1, 1])
    return {"x": (Fraction(sign * a), Fraction(-sign * b))}


def _power_point(random: Random) -> dict[str, Any]:
    return {"x": (Fraction(random.randint(-3, 3)), Fraction(random.randint(1, 3), 2)), "n": random.randint(-6, 6)}


def _pair(x: Golden) -> list[Fraction]:
    return [x.rational, x.golden]


def _run_band(v: Mapping[str, Any]) -> list[list[Fraction]]:
    low, high = anchors.band(v["n"], v["k"])
    return [_pair(low), _pair(high)]


_FILE = "INV08_lr_band"
_CLAMP = Counterpart("INV08_lr_band.clamp", schedule.clamp, "parts (INV08_lr_band.clamp (K := on_Q) {x} {low} {high})",
                     _clamp_point, run=lambda v: schedule.clamp(**v))  # fmt: skip
_LINEAR_DECAY = Counterpart("INV08_lr_band.linear_decay", schedule.linear_decay,
                            "parts (INV08_lr_band.linear_decay (K := on_Q) {step} {start} {end} {peak} {floor})",
                            _decay_point, run=lambda v: schedule.linear_decay(**v))  # fmt: skip
_COSINE_DECAY = Counterpart("INV08_lr_band.cosine_decay", schedule.cosine_decay,
                            f"parts (INV08_lr_band.cosine_decay (K := on_Q) {_COSPI} {{step}} {{start}} {{end}} "
                            "{peak} {floor})",
                            _decay_point, run=lambda v: schedule.cosine_decay(**v, ops=_PARABOLA))  # fmt: skip
_RAMP = Counterpart("INV08_lr_band.warmup_ramp", schedule.warmup_ramp,
                    "parts (INV08_lr_band.warmup_ramp (K := on_Q) {step} {warmup} {peak})",
                    _ramp_point, run=lambda v: Fraction(schedule.warmup_ramp(**v)))  # fmt: skip
_WSD = Counterpart("INV08_lr_band.wsd", schedule.wsd,
                   "parts (INV08_lr_band.wsd (K := on_Q) {step} {warmup} {stable_end} {total} {peak} {floor})",
                   _schedule_point, run=lambda v: Fraction(schedule.wsd(**v)))  # fmt: skip
_COSINE = Counterpart("INV08_lr_band.cosine", schedule.cosine,
                      f"parts (INV08_lr_band.cosine (K := on_Q) {_COSPI} {{step}} {{warmup}} {{total}} {{peak}} {{floor}})",
                      _cosine_point, run=lambda v: Fraction(schedule.cosine(**v, ops=_PARABOLA)))  # fmt: skip
_SEED = Counterpart("INV08_lr_band.seed_schedule", inv08_lr_band.seed_schedule,
                    f"parts (INV08_lr_band.seed_schedule (K := on_Q) {_COSPI} {{step}} {{warmup}} {{stable_end}} {{total}} "
                    "{peak} {floor})",
                    _seed_point, run=lambda v: inv08_lr_band.seed_schedule(**v, ops=_PARABOLA))  # fmt: skip

_ANCHORS = "INV08_anchors"
_ANCHOR = Counterpart("INV08_anchors.anchor", anchors.anchor,
                      "let x := INV08_anchors.anchor (K := on_Q) {n} in [parts (fst x); parts (snd x)]",
                      _anchor_point, run=lambda v: _pair(anchors.anchor(**v)))  # fmt: skip
_BAND = Counterpart("INV08_anchors.band", anchors.band,
                    "map (fun x : GoldenNumber.golden on_Q => [parts (fst x); parts (snd x)]) "
                    "(let b := INV08_anchors.band (K := on_Q) {n} {k} in [fst b; snd b])",
                    _band_point, run=_run_band)  # fmt: skip
_NEARER = Counterpart("INV08_anchors.nearer", anchors.nearer, "INV08_anchors.nearer (K := on_Q) {rate} {low} {high}",
                      _nearer_point,
                      run=lambda v: anchors.nearer(v["rate"], Golden(*v["low"]), Golden(*v["high"])))  # fmt: skip
_IS_NEAREST = Counterpart("INV08_anchors.is_nearest", anchors.is_nearest,
                          "INV08_anchors.is_nearest (K := on_Q) {rate} {n}",
                          _nearest_point, run=lambda v: anchors.is_nearest(**v))  # fmt: skip
_SEARCH = Counterpart("INV08_anchors.nearest_anchor", anchors.nearest_anchor,
                      "match INV08_anchors.nearest_anchor (K := on_Q) {rate} with Some n => n | None => 1000%Z end",
                      _searched_point, run=lambda v: anchors.nearest_anchor(**v), points=60)  # fmt: skip

_SIGN = Counterpart("GoldenNumber.nonnegative", Golden.sign, "GoldenNumber.nonnegative (K := on_Q) {x}", _golden_point,
                    run=lambda v: Golden(*v["x"]).sign() >= 0)  # fmt: skip
_POWER = Counterpart("GoldenNumber.power_Z", Golden.__pow__,
                     "let x := GoldenNumber.power_Z (K := on_Q) {x} {n} in [parts (fst x); parts (snd x)]",
                     _power_point, run=lambda v: _pair(Golden(*v["x"]) ** v["n"]))  # fmt: skip

_WSD_PARTS = (_CLAMP, _LINEAR_DECAY, _RAMP, _WSD)
_COSINE_PARTS = (_CLAMP, _COSINE_DECAY, _RAMP, _COSINE)
_NEAREST_PARTS = (_ANCHOR, _NEARER, _IS_NEAREST)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-8.coq-clamp", "clamp(x, low, high) is in [low, high] for all reals x and low <= high", (schedule.clamp,),
            file=_FILE, theorem="clamp_in_band", counterparts=(_CLAMP,)),
    Theorem("INV-8.coq-clamp-inside", "clamp changes no real that is in its interval already", (schedule.clamp,),
            file=_FILE, theorem="clamp_inside", counterparts=(_CLAMP,)),
    Theorem("INV-8.coq-plateau", "for warmup <= step < stable_end the rate of WSD is in [anchor/phi^k, anchor·phi^k] "
            "if the peak is, for every integer k >= 0, every real anchor and every real step", (schedule.wsd,),
            file=_FILE, theorem="wsd_plateau", counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-range", "if 0 <= floor <= peak, the rate of WSD is in [0, peak] at every real step >= 0, "
            "whatever the order of its phases", (schedule.wsd,), file=_FILE, theorem="wsd_in_range",
            counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-above-floor", "if floor <= peak, the rate of WSD is not below the floor at any real step from "
            "warmup on", (schedule.wsd,), file=_FILE, theorem="wsd_above_floor", counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-ends", "for warmup <= stable_end <= total the rate of WSD is the floor, exactly, from step "
            "`total` on", (schedule.wsd,), file=_FILE, theorem="wsd_ends_at_floor", counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-warmup-line", "if peak >= 0, the warm-up of WSD is peak·(step + 1)/warmup for every real step "
            "with 0 <= step <= warmup - 1", (schedule.wsd,), file=_FILE, theorem="wsd_warmup_line",
            counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-decay-line", "if floor <= peak and warmup <= stable_end, the rate of WSD is floor + (peak - "
            "floor)(total - step)/(total - stable_end) for stable_end <= step < total", (schedule.wsd,), file=_FILE,
            theorem="wsd_decay_line", counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-never-rises", "if floor <= peak and warmup <= stable_end, the rate of WSD never rises from any "
            "real step from stable_end on to any later one, past the end too", (schedule.wsd,), file=_FILE,
            theorem="wsd_never_rises", counterparts=_WSD_PARTS),
    Theorem("INV-8.coq-cosine-range", "if 0 <= floor <= peak, the cosine schedule, with the real cosine, is in [0, "
            "peak] at every real step >= 0", (schedule.cosine,), file=_FILE, theorem="cosine_in_range",
            counterparts=_COSINE_PARTS),
    Theorem("INV-8.coq-cosine-ends", "for warmup <= total the cosine schedule is the floor, exactly, from step `total` "
            "on", (schedule.cosine,), file=_FILE, theorem="cosine_ends_at_floor", counterparts=_COSINE_PARTS),
    Theorem("INV-8.coq-cosine-curve", "if floor <= peak, the cosine schedule at warmup <= step < total is floor + "
            "(peak - floor)(1 + cos(pi t))/2 with t = (step - warmup)/(total - warmup): over the reals the clamp "
            "changes nothing", (schedule.cosine,), file=_FILE, theorem="cosine_decay_curve",
            counterparts=_COSINE_PARTS),
    Theorem("INV-8.coq-cosine-never-rises", "if floor <= peak, the cosine schedule, with the real cosine, never rises "
            "from any real step from warmup on to any later one, past the end too", (schedule.cosine,), file=_FILE,
            theorem="cosine_never_rises", counterparts=_COSINE_PARTS),
    Theorem("INV-8.coq-seed-returns", "for warmup <= stable_end < total the seed's schedule, whose progress is not "
            "clamped, is at its peak any even number of decay lengths after stable_end, with the real cosine",
            (inv08_lr_band.seed_schedule,), file=_FILE, theorem="seed_returns_to_peak", counterparts=(_SEED,)),
    Theorem("INV-8.coq-seed-rises", "with the seed's numbers and the real cosine it is 0.002 at the declared end, step "
            "1000, and 0.02 at step 2000", (inv08_lr_band.seed_schedule,), file=_FILE, theorem="seed_rises_again",
            counterparts=(_SEED,)),
    Theorem("INV-8.coq-golden-power", "the pair that exact arithmetic gives for phi^n is phi^n, for every integer n",
            (Golden.__pow__,), file="GoldenNumber", theorem="value_power_Z", counterparts=(_POWER,)),
    Theorem("INV-8.coq-golden-order", "exact arithmetic decides by squares that a + b·phi is >= 0 exactly where the "
            "real number is, for all real a and b", (Golden.sign,), file="GoldenNumber", theorem="nonnegative_is_order",
            counterparts=(_SIGN,)),
    Theorem("INV-8.coq-anchor", "the exact number computed for anchor n is phi^-n / 2, for every integer n", (anchors.anchor,),
            file=_ANCHORS, theorem="anchor_value", counterparts=(_ANCHOR,)),
    Theorem("INV-8.coq-band", "the computed ends of the band are anchor/phi^k and anchor·phi^k, for every integer n "
            "and every integer k >= 0", (anchors.band,), file=_ANCHORS, theorem="band_value",
            counterparts=(_ANCHOR, _BAND)),
    Theorem("INV-8.coq-one-nearest", "every positive real rate has exactly one nearest anchor", (anchors.is_nearest,),
            file=_ANCHORS, theorem="one_nearest", counterparts=_NEAREST_PARTS),
    Theorem("INV-8.coq-nearest-found", "for every positive real rate the search finds n iff n is the nearest anchor and "
            f"|n| <= {anchors.FURTHEST}", (anchors.nearest_anchor,), file=_ANCHORS, theorem="nearest_anchor_found",
            counterparts=(*_NEAREST_PARTS, _SEARCH)),
    Theorem("INV-8.coq-nearest", "the nearest anchor is within a factor sqrt(phi) of the rate, for every positive real rate",
            (anchors.is_nearest,), file=_ANCHORS, theorem="nearest_is_near", counterparts=_NEAREST_PARTS),
    Theorem("INV-8.coq-every-rate", "every positive real rate lies in the band of some anchor, for every integer width "
            "k >= 1", (anchors.band,), file=_ANCHORS, theorem="every_rate_in_a_band", counterparts=(_ANCHOR, _BAND)),
    Theorem("INV-8.coq-alpha-phi", "alpha_phi, as it runs, is phi^-3 / 2 = (sqrt 5 - 2) / 2", (), file=_ANCHORS,
            theorem="alpha_phi_value"),
    Theorem("INV-8.coq-seed-value", "alpha_phi / phi^3 is between 0.027864 and 0.027865", (), file=_ANCHORS,
            theorem="seed_identity_value"),
    Theorem("INV-8.coq-seed-identity", "alpha_phi / phi^3 is not 0.004, contrary to the seed", (), file=_ANCHORS,
            theorem="seed_identity_false"),
    Theorem("INV-8.coq-default-anchor", "the default anchor is between 0.00406 and 0.00407", (anchors.anchor,), file=_ANCHORS,
            theorem="default_anchor", counterparts=(_ANCHOR,)),
    Theorem("INV-8.coq-default-band", "the ends of the default band are between 0.00251 and 0.00252, and between 0.00657 and "
            "0.00658; 0.004 lies between them", (anchors.band,), file=_ANCHORS, theorem="default_band",
            counterparts=(_ANCHOR, _BAND)),
)  # fmt: skip
