"""Theorems behind INV-10: which rungs there are, who survives them, and how many remain, for every number of both.

Losses are exact numbers here. Where NaN ranks is a law of doubles, INV-10.order; a carrier of numbers has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import halving
from karat.core.obligation import Counterpart, Obligation, Theorem

_RUNGS, _RACE = "INV10_asha_rungs", "INV10_asha_race"


def _loss(random: Random) -> Fraction:
    """Few enough values for ties."""
    return Fraction(random.randint(-3, 6), random.choice([1, 2]))


def _losses(random: Random, trials: int) -> list[Fraction]:
    return [_loss(random) for _ in range(trials)]


def _sample_steps(random: Random) -> dict[str, Any]:
    """Ends at a rung, on both sides of it, before the first, and anywhere."""
    r0 = random.choice([1, 2, 400, random.randint(1, 50)])
    at_rung = r0 * 3 ** random.randint(0, 8)
    return {"r0": r0, "total": random.choice([at_rung, at_rung - 1, at_rung + 1, random.randint(-2, 3000)])}


def _sample_due(random: Random) -> dict[str, Any]:
    rungs = [random.randint(0, 40) for _ in range(random.randint(0, 5))]
    return {"rungs": rungs, "step": random.choice([*rungs, random.randint(-1, 41)])}


def _sample_misplaced(random: Random) -> dict[str, Any]:
    """Any two lists of up to five; often the same one, shortened or with one place off."""
    due = _losses(random, random.randint(0, 5))
    rungs = random.choice([list(due), due[: random.randint(0, 5)], _losses(random, random.randint(0, 5))])
    if rungs and random.random() < 0.5:
        rungs[random.randrange(len(rungs))] += random.randint(-4, 4)
    return {"rungs": rungs, "due": due}


def _sample_order(random: Random) -> dict[str, Any]:
    x = _loss(random)
    return {"x": x, "i": random.randint(0, 3), "y": random.choice([x, _loss(random)]), "j": random.randint(0, 3)}


def _sample_losses(random: Random) -> dict[str, Any]:
    return {"losses": _losses(random, random.choice([0, 1, 2, 3, 5, 6, 9, 10]))}


def _sample_rank(random: Random) -> dict[str, Any]:
    losses = _losses(random, random.randint(1, 10))
    return {"losses": losses, "place": random.randrange(len(losses))}


def _sample_race(random: Random) -> dict[str, Any]:
    trials = random.choice([0, 1, 2, 3, 6, 9, 12])
    return {"trials": trials, "rungs": [_losses(random, trials) for _ in range(random.randint(0, 3))]}


def _run(function: Any) -> Any:
    """The function on the values of a point, by name."""
    return lambda values: function(**values)


def _steps(values: Mapping[str, Any]) -> list[int]:
    return list(halving.rung_steps(**values))


def _before(v: Mapping[str, Any]) -> Any:
    return halving.goes_before(v["x"], v["i"], v["y"], v["j"])


def _distance(values: Mapping[str, Any]) -> Fraction:
    return Fraction(halving.misplaced(**values))


NEXT = Counterpart(f"{_RUNGS}.next_rung", halving.next_rung, f"{_RUNGS}.next_rung {{rung}}",
                   lambda random: {"rung": random.randint(0, 10**6)}, _run(halving.next_rung))  # fmt: skip
STEPS = Counterpart(
    f"{_RUNGS}.rung_steps", halving.rung_steps, f"{_RUNGS}.rung_steps {{r0}} {{total}}", _sample_steps, _steps
)
DUE = Counterpart(f"{_RUNGS}.rungs_due", halving.rungs_due, f"{_RUNGS}.rungs_due {{rungs}} {{step}}", _sample_due,
                  _run(halving.rungs_due))  # fmt: skip
MISPLACED = Counterpart(f"{_RUNGS}.misplaced", halving.misplaced,
                        f"parts ({_RUNGS}.misplaced (K := on_Q) {{rungs}} {{due}})", _sample_misplaced, _distance)  # fmt: skip
KEEP = Counterpart(f"{_RUNGS}.keep", halving.keep, f"{_RUNGS}.keep {{n}}",
                   lambda random: {"n": random.choice([random.randint(0, 10), random.randint(0, 1000)])},
                   _run(halving.keep))  # fmt: skip
ORDER = Counterpart(f"{_RACE}.goes_before", halving.goes_before,
                    f"{_RACE}.goes_before (K := on_Q) {{x}} (Z.to_nat {{i}}) {{y}} (Z.to_nat {{j}})", _sample_order,
                    _before)  # fmt: skip
RANK = Counterpart(f"{_RACE}.rank", halving.rank, f"Z.of_nat ({_RACE}.rank (K := on_Q) {{losses}} (Z.to_nat {{place}}))",
                   _sample_rank, _run(halving.rank))  # fmt: skip
SURVIVORS = Counterpart(f"{_RACE}.survivors", halving.survivors,
                        f"map Z.of_nat ({_RACE}.survivors (K := on_Q) {{losses}})", _sample_losses,
                        _run(halving.survivors))  # fmt: skip
ALIVE = Counterpart(f"{_RACE}.last_alive", halving.last_alive,
                    f"map Z.of_nat ({_RACE}.last_alive (K := on_Q) (Z.to_nat {{trials}}) {{rungs}})", _sample_race,
                    _run(halving.last_alive))  # fmt: skip

_STEPS = (halving.rung_steps, halving.next_rung)
_SURVIVAL = (halving.survivors, halving.rank, halving.goes_before, halving.keep)
_WHO = (SURVIVORS, RANK, ORDER, KEEP)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-10.coq-rungs-all", "for every first rung r0 >= 1, every end and every integer k >= 0: the k-th rung "
            "is r0·3^k if that is before the end, and there is none if it is not", _STEPS, file=_RUNGS,
            theorem="rungs_all", counterparts=(STEPS, NEXT)),
    Theorem("INV-10.coq-rungs-exactly", "for a first rung r0 >= 1 a step is a rung iff it is r0·3^k for some integer k "
            ">= 0 and before the end", _STEPS, file=_RUNGS, theorem="rungs_exactly", counterparts=(STEPS, NEXT)),
    Theorem("INV-10.coq-rungs-rise", "for a first rung of at least 1 the rungs rise strictly, however many there are",
            _STEPS, file=_RUNGS, theorem="rungs_rise", counterparts=(STEPS, NEXT)),
    Theorem("INV-10.coq-due", "for a first rung of at least 1 the rungs due after a step are the rungs of a run that "
            "ends just after it, or with the run", (halving.rungs_due, *_STEPS), file=_RUNGS, theorem="due_are_rungs",
            counterparts=(DUE, STEPS, NEXT)),
    Theorem("INV-10.coq-keep", "of any n >= 1 trials a rung keeps at least one and at most n: one of fewer than six, a third "
            "rounded down of three or more", (halving.keep,), file=_RUNGS, theorem="keep_some", counterparts=(KEEP,)),
    Theorem("INV-10.coq-misplaced", "how far rungs are from those due is the largest of the distances of the pairs and "
            "the difference in number, for real lists of any length", (halving.misplaced,), file=_RUNGS,
            theorem="misplaced_is_largest", counterparts=(MISPLACED,)),
    Theorem("INV-10.coq-in-place", "rungs are 0 off those due iff they are the same, for real lists of any length",
            (halving.misplaced,), file=_RUNGS, theorem="misplaced_zero", counterparts=(MISPLACED,)),
    Theorem("INV-10.coq-order", "among numbers a trial goes before another iff its loss is lower, or equal and its place first",
            (halving.goes_before,), file=_RACE, theorem="order_is", counterparts=(ORDER,)),
    Theorem("INV-10.coq-order-total", "of two trials at different places exactly one goes before the other, among numbers",
            (halving.goes_before,), file=_RACE, theorem="order_total", counterparts=(ORDER,)),
    Theorem("INV-10.coq-order-transitive", "what goes before a trial goes before all that come after it, among numbers",
            (halving.goes_before,), file=_RACE, theorem="order_transitive", counterparts=(ORDER,)),
    Theorem("INV-10.coq-rank-orders", "in any number of trials with real losses one has the lower rank iff it goes "
            "before the other", (halving.rank, halving.goes_before), file=_RACE, theorem="rank_orders",
            counterparts=(RANK, ORDER)),
    Theorem("INV-10.coq-ranks", "the ranks of n trials are 0 to n - 1, each once, whatever their real losses, ties "
            "included", (halving.rank, halving.goes_before), file=_RACE, theorem="ranks_permute",
            counterparts=(RANK, ORDER)),
    Theorem("INV-10.coq-survivors", "exactly keep(n) of n >= 1 trials survive a rung, whatever their real losses, ties "
            "included", _SURVIVAL, file=_RACE, theorem="survivors_count", counterparts=_WHO),
    Theorem("INV-10.coq-survivors-first", "every survivor of a rung goes before every trial that it drops, whatever "
            "the real losses", _SURVIVAL, file=_RACE, theorem="survivors_first", counterparts=_WHO),
    Theorem("INV-10.coq-best", "of any number of trials with real losses the one with the least, the first of those "
            "that share it, has rank 0 and survives", _SURVIVAL, file=_RACE, theorem="best_survives",
            counterparts=_WHO),
    Theorem("INV-10.coq-alive", "the trials alive after any number of rungs of real losses are trials of the start, in "
            "rising order, no trial twice", (halving.last_alive,), file=_RACE, theorem="alive_are_trials",
            counterparts=(ALIVE, *_WHO)),
    Theorem("INV-10.coq-race", "a trial that at every rung has the least of all real losses, and is the first of those "
            "that share it, is alive after any number of rungs, whatever becomes of the others",
            (halving.last_alive, *_SURVIVAL), file=_RACE, theorem="best_stays_alive", counterparts=(ALIVE, *_WHO)),
    Theorem("INV-10.coq-alive-count", "of n >= 1 trials max(1, n div 3^k) are alive after k rungs, whatever the real "
            "losses", (halving.last_alive, *_SURVIVAL), file=_RACE, theorem="alive_count", counterparts=(ALIVE, *_WHO)),
    Theorem("INV-10.coq-one-left", "exactly one of n >= 1 trials is left after k rungs iff n < 2·3^k, whatever the "
            "real losses", (halving.last_alive, *_SURVIVAL), file=_RACE, theorem="one_left",
            counterparts=(ALIVE, *_WHO)),
)  # fmt: skip
