"""INV-10 asha-rungs: rungs come at r0·3^k, and the best trial survives every one of them by rank.

Claim: the rungs of a run are r0, 3 r0, 9 r0, …, all those before its end and no other; of n >= 1 trials max(1, n div 3)
survive a rung, so the best always does; a NaN loss ranks behind every number.
Why it matters: a rung at another step compares trials at different ages; without `at least one` the last trials are all
dropped; and a rank that counts smaller losses gives NaN the first place.
Source: the seed's INV-10. A trial that is best only at the end may be dropped at an early rung: kept as a refutation.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import SimpleNamespace
from typing import Any

from karat.core.formulas import halving
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import Checked, Exhaustive, FloatLaw, Formula, Obligation, implies
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


@dataclass(frozen=True)
class Rungs:
    """The declared first rung and the end of the run, in optimizer steps."""

    r0: int = 400
    total: int = 1200

    @property
    def steps(self) -> tuple[int, ...]:
        """The declared rungs."""
        return halving.rung_steps(self.r0, self.total)


def margin(values: Mapping[str, Any], declared: Rungs, ops: Ops = FLOAT) -> Number:
    """0 when the rungs so far are those that were due, else minus how far off they are, in steps or in number."""
    return -halving.misplaced(values["rungs"], halving.rungs_due(declared.steps, values["step"]), ops)


def third(n: Number) -> Number:
    """The rule without `at least one`: false, kept for its refutation."""
    return n // halving.ETA


DEFAULT = Rungs()
TRIALS = 4


def _next(v: Any, next_rung: Any) -> Any:
    following = next_rung(v.rung)
    return [following == 3 * v.rung, following > v.rung]


def _rungs_are_declared(rung_steps: Any) -> Checked:
    """Every first rung up to 60, with ends on both sides of rungs, past 3^20 too; and no first rung below 1."""
    cases = 0
    for r0 in range(1, 61):
        for total in (0, 1, 2, r0, r0 + 1, 3 * r0, 3 * r0 + 1, 27 * r0 + 5, r0 * 3**20 + 1):
            rungs = rung_steps(r0, total)
            expected = [r0 * 3**k for k in range(40) if r0 * 3**k < total]
            if list(rungs) != expected:
                return Checked(cases, f"rung_steps({r0}, {total}) = {rungs}, not {expected}")
            cases += 1
    try:
        rungs = rung_steps(0, 0)
    except ValueError:
        return Checked(cases + 1)
    return Checked(cases, f"rung_steps(0, 0) = {rungs}: a first rung of 0 is not refused")


def _rungs_to_the_end(r0: int, total: int) -> tuple[int, ...]:
    return tuple(r0 * 3**k for k in range(40) if r0 * 3**k <= total)


def _misplaced_is(misplaced: Any) -> Checked:
    """Up to five rungs and five due, one of them off at any place: the largest distance, and the difference in number."""
    cases = 0
    for held, due in itertools.product(range(6), repeat=2):
        wanted = [3**k for k in range(due)]
        for place, off in itertools.product(range(-1, held), (1, -1)):
            rungs = [3**k + (off * (k + 2) if k == place else 0) for k in range(held)]
            exact = max([abs(held - due), *(abs(a - b) for a, b in zip(rungs, wanted, strict=False))])
            if misplaced(rungs, wanted) != exact:
                return Checked(cases, f"misplaced({rungs}, {wanted}) = {misplaced(rungs, wanted)}, not {exact}")
            cases += 1
    return Checked(cases)


def _first_two(rungs: Any, due: Any) -> Any:
    return halving.misplaced(rungs[:2], due[:2])


def _declared(v: Any) -> Any:
    """Three rungs of any distance, as the margin asks a declaration for them."""
    return SimpleNamespace(steps=(v.first, v.second, v.third))


def _judged(v: Any, distance: Any) -> Any:
    """With two of three rungs due: what happened is accepted iff it is these two, by as much as it is off."""
    declared = _declared(v)
    both = distance({"rungs": [v.a, v.b], "step": v.step}, declared, v.ops)
    right = (v.a == v.first) & (v.b == v.second)
    one = distance({"rungs": [v.a], "step": v.step}, declared, v.ops)
    three = distance({"rungs": [v.a, v.b, v.third], "step": v.step}, declared, v.ops)
    off_a, off_b = v.ops.absolute(v.a - v.first), v.ops.absolute(v.b - v.second)
    return [
        (both >= 0) == right,
        (both == -off_a) | (both == -off_b),
        (both <= -off_a) & (both <= -off_b),
        one <= -1,
        implies(v.a == v.first, one == -1),
        three <= -1,
        implies(right, three == -1),
    ]


def _two_due(v: Any) -> dict[str, Any]:
    return {
        "the first is due": v.first <= v.step,
        "the second is due": v.second <= v.step,
        "the third is not": v.step < v.third,
    }


def _sample_judged(random: Random) -> dict[str, Any]:
    first = random.randint(1, 50)
    return {"first": first, "second": 3 * first, "third": 9 * first, "step": random.randint(3 * first, 9 * first - 1),
            "a": first + random.choice([0, 0, 1, -2]), "b": 3 * first + random.choice([0, 0, 3, -1])}  # fmt: skip


def _keep(v: Any, keep: Any) -> Any:
    kept = keep(v.n)
    return [
        kept <= v.n,
        implies(v.n < 3, kept == 1),
        implies(v.n >= 3, (3 * kept <= v.n) & (v.n < 3 * kept + 3)),
        kept > 0,  # so rank 0, the best, is below it
    ]


def _third_keeps_one(v: Any, rule: Any) -> Any:
    return rule(v.n) >= 1


def _some(v: Any) -> dict[str, Any]:
    return {"n >= 1": v.n >= 1}


def _order(v: Any, before: Any) -> Any:
    """The full value: of two numbers, of a number and NaN, of two NaN."""
    first = before(v.a, v.i, v.b, v.j)
    number_a, number_b, nan_a, nan_b = v.a == v.a, v.b == v.b, v.a != v.a, v.b != v.b
    ahead = (v.a < v.b) | ((v.a == v.b) & (v.i < v.j))
    return [
        implies(number_a & number_b, first == ahead),
        implies(number_a & nan_b, first == True),  # noqa: E712 - symbolic too
        implies(nan_a & number_b, first == False),  # noqa: E712
        implies(nan_a & nan_b, first == (v.i < v.j)),
    ]


def _places(random: Random) -> dict[str, float]:
    numbers = [0.0, -0.0, 1.5, 2.25, math.inf, math.nan]
    return {"a": random.choice(numbers), "b": random.choice(numbers), "i": float(random.randint(0, 3)),
            "j": float(random.randint(0, 3))}  # fmt: skip


def _transitive(v: Any, before: Any) -> Any:
    if before(v.a, v.i, v.b, v.j) and before(v.b, v.j, v.c, v.k):
        return before(v.a, v.i, v.c, v.k) == True  # noqa: E712 - symbolic too
    return []


def _one_first(v: Any, before: Any) -> Any:
    return before(v.a, v.i, v.b, v.j) != before(v.b, v.j, v.a, v.i)


def _three_losses(random: Random) -> dict[str, float]:
    numbers = [0.0, 1.5, 2.25, math.inf, -math.inf, math.nan]
    return {name: random.choice(numbers) for name in "abc"} | {"i": 2.0, "j": 0.0, "k": 1.0}


def _no_nan_promoted(v: Any, survivors: Any) -> Any:
    losses = (v.a, v.b, v.c)
    kept = survivors(losses)
    none = (v.a != v.a) & (v.b != v.b) & (v.c != v.c)
    claims = [implies(place == t, (loss == loss) | none) for place in kept for t, loss in enumerate(losses)]
    return [len(kept) == 1, *claims]


def _expected_order(losses: Sequence[float]) -> list[int]:
    """The places from best to worst, by a sort of Python's own."""
    return sorted(
        range(len(losses)), key=lambda t: (losses[t] != losses[t], losses[t] if losses[t] == losses[t] else 0.0, t)
    )


def _ranks(rank: Any, survivors: Any) -> Checked:
    """Every list of up to four losses out of five, NaN and infinity among them; of six and nine out of three."""
    values = (1.0, 2.0, -1.0, math.inf, math.nan)
    lists = [list(x) for n in range(1, 5) for x in itertools.product(values, repeat=n)]
    lists += [list(x) for x in itertools.product(values[:2] + values[-1:], repeat=6)]
    lists += [[*x, math.nan, 0.5, 2.0] for x in itertools.product(values[:2] + values[-1:], repeat=6)]
    for losses in lists:
        order = _expected_order(losses)
        ranks = [rank(losses, place) for place in range(len(losses))]
        if any(ranks[place] != position for position, place in enumerate(order)):
            return Checked(0, f"the ranks of {losses} are {ranks}")
        best = sorted(order[: max(1, len(losses) // 3)])
        if survivors(losses) != best:
            return Checked(0, f"of {losses} survive {survivors(losses)}, not {best}")
    return Checked(len(lists))


def _count_smaller(losses: Sequence[float], place: int) -> int:
    """Rank as a count of smaller losses: NaN has none below it, and comes first."""
    return sum(1 for other in losses if other < losses[place])


def _of_smaller(losses: Sequence[float]) -> list[int]:
    return [t for t in range(len(losses)) if _count_smaller(losses, t) < halving.keep(len(losses))]


def _best_of_all(v: Any) -> dict[str, Any]:
    """The trial 0 is best at every one of three rungs; nothing is said of the others."""
    return {
        f"best at rung {r}": functools.reduce(lambda x, y: x & y, (_loss(v, 0, r) < _loss(v, t, r) for t in range(1, TRIALS)))
        for r in range(3)
    }  # fmt: skip


def _loss(v: Any, trial: int, rung: int) -> Any:
    return getattr(v, f"loss_{trial}_{rung}")


def _race(v: Any, last_alive: Any) -> Any:
    alive = last_alive(TRIALS, [[_loss(v, t, r) for t in range(TRIALS)] for r in range(3)])
    return [alive[0] == 0, len(alive) == 1]


def _sample_race(random: Random) -> dict[str, Any]:
    return {f"loss_{t}_{r}": Fraction(random.randint(10, 99) if t else random.randint(0, 9), 10)
            for t in range(TRIALS) for r in range(3)}  # fmt: skip


def _best_at_the_end(v: Any) -> dict[str, Any]:
    return {"best at the last rung": (v.loss_0_1 < v.loss_1_1) & (v.loss_0_1 < v.loss_2_1)}


def _crossing_race(v: Any, last_alive: Any) -> Any:
    return last_alive(3, [[_loss(v, t, r) for t in range(3)] for r in range(2)])[0] == 0


def _consistent_races(last_alive: Any) -> Checked:
    """Every order of six trials that keeps its order at two rungs, and nine trials in twenty-seven orders at three."""
    cases = 0
    orders = [[float(x) for x in order] for order in itertools.permutations(range(1, 7))]
    races: list[tuple[list[list[float]], int]] = [([order, [x / 2 for x in order]], 1) for order in orders]
    for turn, step in itertools.product(range(9), range(3)):
        order = [float((place * (3 * step + 1) + turn) % 9) for place in range(9)]
        races.append(([order, [x - 20 for x in order], [math.nan if x else 1.0 for x in order]], 1))
    races += [([order], 2) for order in orders]
    for rungs, left in races:
        alive = last_alive(len(rungs[0]), rungs)
        best = rungs[0].index(min(rungs[0]))
        expected = sorted(sorted(range(len(rungs[0])), key=lambda t: rungs[0][t])[:left])
        if alive != expected or best not in alive:
            return Checked(cases, f"of {rungs} remain {alive}, not {expected}")
        cases += 1
    return Checked(cases)


def _ranks_the_dropped_too(trials: int, rungs: Sequence[Sequence[float]]) -> list[int]:
    """A race in which every rung ranks all trials again."""
    return halving.survivors(rungs[-1])


_DOUBLES = ("a", "b", "i", "j")
_LOSSES = {f"loss_{t}_{r}": "real" for t in range(TRIALS) for r in range(3)}

OBLIGATIONS: tuple[Obligation, ...] = (
    Formula("INV-10.next", "the rung after a rung is three times it, and later: so by induction rungs are r0·3^k and rise "
            "strictly, however many there are", (halving.next_rung,), variables={"rung": "int"},
            given=lambda v: {"a rung": v.rung >= 1}, show=_next,
            sample=lambda random: {"rung": random.randint(1, 50) * 3 ** random.randint(0, 5)}),
    Exhaustive("INV-10.rungs", "the rungs are r0·3^k, all those before the end and no other, for long runs too; a first rung "
               "below 1 is refused", (halving.rung_steps,), check=_rungs_are_declared,
               rivals={"a rung at the end": (_rungs_to_the_end,)}),
    Formula("INV-10.judged", "the guard accepts iff the rungs so far are those that were due, and else says by how much they "
            "are not, in steps or in number", (margin,),
            variables=dict.fromkeys(("first", "second", "third", "step", "a", "b"), "int"),
            given=_two_due, show=_judged, sample=_sample_judged),
    Formula("INV-10.keep", "of n >= 1 trials a rung keeps a third, rounded down, at least one: the best is always kept",
            (halving.keep,), variables={"n": "int"}, given=_some, show=_keep,
            sample=lambda random: {"n": random.randint(1, 100)}),
    Formula("INV-10.keep-a-third", "a third of the trials, rounded down, without `at least one`, keeps the best", (third,),
            variables={"n": "int"}, given=_some, show=_third_keeps_one, sample=lambda random: {"n": random.randint(3, 100)},
            must_fail=True),
    FloatLaw("INV-10.order", "the order of two trials, in full: the lower loss first, NaN after every number, ties by place, "
             "for all doubles", (halving.goes_before,), variables=_DOUBLES, show=_order, sample=_places),
    FloatLaw("INV-10.one-first", "of two trials at different places exactly one goes before the other, NaN or not",
             (halving.goes_before,), variables=_DOUBLES, given=lambda v: {"different places": v.i < v.j}, show=_one_first,
             sample=lambda random: _places(random) | {"i": 1.0, "j": 2.0}),
    FloatLaw("INV-10.transitive", "what goes before a trial goes before all that come after it: so any number of trials has "
             "a best, of rank 0", (halving.goes_before,), variables=("a", "b", "c", "i", "j", "k"), show=_transitive,
             sample=_three_losses),
    Exhaustive("INV-10.misplaced", "how far rungs are from those due: up to five of each, one off at any place",
               (halving.misplaced,), check=_misplaced_is, rivals={"the first two": (_first_two,)}),
    FloatLaw("INV-10.nan", "of three trials none with a NaN loss survives while one has a number, for all doubles",
             (halving.survivors,), variables=("a", "b", "c"), show=_no_nan_promoted, sample=_three_losses),
    Exhaustive("INV-10.ranks", "rank and survivors are those of a sort by (is NaN, loss, place): every list of up to four of "
               "five losses, and of six and nine of three", (halving.rank, halving.survivors), check=_ranks,
               rivals={"a count of smaller losses": (_count_smaller, _of_smaller)}),
    Formula("INV-10.race", "of four trials the one that is best at each of three rungs is alive at the end, whatever the others "
            "do", (halving.last_alive,), variables=_LOSSES, given=_best_of_all, show=_race, sample=_sample_race),
    Exhaustive("INV-10.races", "six and nine trials whose order is the same at every rung: the best remain, in every order of "
               "six", (halving.last_alive,), check=_consistent_races,
               rivals={"the dropped come back": (_ranks_the_dropped_too,)}),
    Formula("INV-10.crossing", "the trial that is best at the last rung is alive after it, whatever its loss was before",
            (halving.last_alive,), variables={k: x for k, x in _LOSSES.items() if k[5] != "3" and k[7] != "2"},
            given=_best_at_the_end, show=_crossing_race, sample=_sample_race, must_fail=True),
)  # fmt: skip


def bounds(declared: Rungs) -> tuple[Bound, ...]:
    """The declared rungs as cited."""
    return (
        Bound("rungs", f"r0·{halving.ETA}^k < {declared.total}", ", ".join(map(str, declared.steps)) or "none"),
        Bound("kept", f"max(1, n div {halving.ETA}) of n trials", "by rank; a run alone is one of one"),
    )


def required(declared: Rungs) -> str:
    """The condition as one line."""
    steps = ", ".join(map(str, declared.steps)) or "none before the end"
    return f"the rungs so far are those due of {declared.r0}·{halving.ETA}^k < {declared.total}   [{steps}]"


def _values(step: int, *rungs: float) -> dict[str, Any]:
    return {"rungs": list(rungs), "step": Fraction(step)}


INVARIANT = Invariant(
    id="INV-10",
    slug="asha-rungs",
    statement="Rungs come at r0·3^k, all those before the end; of n trials max(1, n div 3) survive by rank, NaN last.",
    why="A rung at another step compares trials of different ages; a rule without `at least one` drops the last trial.",
    unit="",
    sources=(
        "the seed's INV-10, with ranks in place of a constant",
        "successive halving: Li et al. 2018, arXiv 1810.05934",
    ),
    limits=(
        "A run alone is one trial of one: the guard watches its rungs; rank and survival are proved, not exercised by it.",
        "The best trial survives if it is best at every rung; one that is best only at the end may be dropped early.",
        "A finite NaN-free rank says nothing of noise: two trials may differ by less than a validation loss means.",
    ),
    phases=(Phase.START, Phase.RUNG, Phase.FINISH),
    quantities=(
        Quantity(
            "rungs",
            "rungs",
            "steps",
            "the steps at which a rung was held so far; before the first step, those planned",
            ("R",),
        ),
        Quantity("step", "steps done", "", "how many steps are done; before the first step, of the whole plan"),
    ),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries(
        {
            "rungs": st.sampled_from([[400.0], [400.0], [401.0], [400.0, 401.0], [400.0, 1200.0]]),
            "step": st.integers(0, 1300).map(Fraction),
        }
    ),
    holds=(
        Witness(_values(400, 400.0), "the first rung"),
        Witness(_values(1200, 400.0), "the end: the next would be at 1200, which is not before it"),
    ),
    violates=(
        Witness(_values(401, 401.0), "one step late"),
        Witness(_values(400, 400.0, 400.0), "the same rung twice"),
        Witness(_values(1200, 400.0, 1200.0), "a rung at the end"),
        Witness(_values(600, 401.0, 400.0), "not rising"),
    ),
)
