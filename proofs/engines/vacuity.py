"""What a proof must survive to say anything: its claim against an arbitrary function, its hypotheses one by one, both
sides of its conditions.

A claim that holds whatever the function returns says nothing of the function; a hypothesis that can be left out is
redundant, and listed; an antecedent that is never true, or a bound that is never crossed, makes a condition empty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import z3

from karat.proofs.engines.budget import Budget
from karat.proofs.exploration import Exploration, Failure, arbitrary, explore, run_on_numbers
from karat.proofs.symbolic import PathBudget, SBool

TRIED = 150
"""Points beside samples at which the running functions are tried before Z3 is asked."""
NOTICED = "every condition fails for an arbitrary function"


def goals_of(exploration: Exploration, *, without: str | None = None) -> list[tuple[list[Any], Any]]:
    """(assumptions, condition) for every condition and every divisor on every path; `without` leaves a hypothesis out."""
    kept = {label: term for label, term in exploration.hypotheses.items() if label != without}
    goals = []
    for path in exploration.paths:
        for goal in path.value:
            labels = [label for label in (kept if goal.needs == ("*",) else goal.needs) if label != without]
            goals.append(
                ([*(exploration.hypotheses[label] for label in labels), *path.condition], SBool.lift(goal.claim))
            )
        for condition, divisor in path.divisors:
            zero = z3.fpIsZero(divisor) if z3.is_fp(divisor) else divisor == 0
            goals.append(([*kept.values(), *condition], z3.Not(zero)))
    return goals


def notices(obligation: Any, v: Any, carrier: type, budget: Budget) -> str:
    """Whether each condition of the claim fails when the running functions return anything at all."""
    havoc = explore(obligation, v, [arbitrary(f, carrier) for f in obligation.about])
    noticed: dict[int, str] = {}
    for path in havoc.paths:
        for place, goal in enumerate(path.value):
            if noticed.get(place) == "sat" or isinstance(goal.claim, bool):
                continue  # a literal is about the shape of the result, which an arbitrary function keeps: mutants test it
            labels = havoc.hypotheses if goal.needs == ("*",) else goal.needs
            assumptions = [havoc.hypotheses[label] for label in labels]
            claim = z3.Not(SBool.lift(goal.claim))
            noticed[place] = budget.check(*assumptions, *path.condition, *havoc.axioms, claim)[0]
    if not noticed:
        return "holds for any function whatever"
    for answer, text in (
        ("unsat", "holds for any function whatever"),
        ("unknown", "not shown to depend on the function"),
    ):
        places = [str(place + 1) for place, found in noticed.items() if found == answer]
        if places:
            return f"condition {', '.join(places)} of {len(noticed)} {text}"
    return NOTICED


def sides(
    exploration: Exploration, budget: Budget, points: Sequence[Sequence[tuple[Any, Any]]]
) -> tuple[int, list[str]]:
    """How many sides of the claim's conditions are reached on some path, and the names of those shown never to be.

    An equivalence with a decision that the running function took, the other way on another path, has both sides; one
    with the same literal on every path is a plain statement. points: samples, as (variable, value) pairs of terms; Z3 is
    asked only for what none of them reaches.
    """
    reached, missed, noted = 0, [], exploration.explorer.sides
    for name, places in noted.items():
        place = name.split(" ")[0]
        decided = [f"{place} decided {way}" in noted for way in (True, False)]
        if " decided " in name or (any(decided) and not all(decided)):
            continue
        if any(_reached_at(points, z3.And(*condition, term)) for condition, term in places):
            reached += 1
            continue
        answers = set()
        for condition, term in places:
            answers.add(budget.check(*exploration.hypotheses.values(), *exploration.axioms, *condition, term)[0])
            if "sat" in answers:
                break
        if "sat" in answers:
            reached += 1
        elif answers == {"unsat"}:
            missed.append(name)
    return reached, missed


def _reached_at(points: Sequence[Sequence[tuple[Any, Any]]], term: Any) -> bool:
    return any(z3.is_true(z3.simplify(z3.substitute(term, *point))) for point in points)


def needs(
    obligation: Any, v: Any, exploration: Exploration, budget: Budget, points: Sequence[Mapping[str, Any]]
) -> str:
    """Which hypotheses the claim fails without, and which it does not need.

    First the running functions are tried at points beside the samples; Z3 is asked of the hypotheses that are left.
    """
    found = {
        label: "needed"
        if _fails_nearby(obligation, points, label)
        else _without(obligation, v, exploration, budget, label)
        for label in exploration.hypotheses
    }
    parts = []
    for answer in ("needed", "redundant", "not shown needed"):
        labels = [label for label, one in found.items() if one == answer]
        if labels:
            parts.append(f"{answer}: {'; '.join(labels)}")
    return ". ".join(parts)


def _fails_nearby(obligation: Any, points: Sequence[Mapping[str, Any]], label: str) -> bool:
    """Whether the claim fails on numbers that satisfy every hypothesis but this one: samples with one value changed."""
    others = _less(obligation, label)
    changed = ({**p, name: odd} for p in points for name, value in p.items() for odd in _beside(value))
    for point in islice(changed, TRIED):
        try:
            run_on_numbers(others, point, hypotheses_must_hold=False)
        except Failure:
            return True
        except (ArithmeticError, ValueError, TypeError):
            continue
    return False


def _beside(value: Any) -> tuple[Any, ...]:
    if isinstance(value, float):
        return (-1.0, 0.0, 1e308, math.inf, -math.inf, math.nan)
    return (value + 1, value - 1, -value, 0 * value, 10 * value)


def _without(obligation: Any, v: Any, exploration: Exploration, budget: Budget, label: str) -> str:
    answers = _fails_somewhere(exploration, budget, label)
    if answers == {"unsat"}:  # on the paths that the hypothesis allows; there may be others without it
        try:
            free = explore(_less(obligation, label), v, obligation.about)
        except (ArithmeticError, ValueError, IndexError, PathBudget):
            return "needed"  # without it the functions are not even defined
        answers = _fails_somewhere(free, budget, label)
    if "sat" in answers:
        return "needed"
    return "redundant" if answers == {"unsat"} else "not shown needed"


def _fails_somewhere(exploration: Exploration, budget: Budget, label: str) -> set[str]:
    answers = {"unsat"}
    for assumptions, goal in goals_of(exploration, without=label):
        answers.add(budget.check(*assumptions, *exploration.axioms, z3.Not(goal))[0])
        if "sat" in answers:
            break
    return answers


def _less(obligation: Any, label: str) -> Any:
    def given(v: Any) -> Mapping[str, Any]:
        return {name: condition for name, condition in obligation.given(v).items() if name != label}

    return dataclasses.replace(obligation, given=given, show=_withholding(obligation.show, label))


def _withholding(show: Any, label: str) -> Any:
    """The claim with a label taken out of what its goals ask for."""

    def shown(v: Any, *about: Any) -> Any:
        return _relabelled(show(v, *about), label)

    return shown


def _relabelled(claim: Any, label: str) -> Any:
    if isinstance(claim, (list, tuple)):
        return [_relabelled(part, label) for part in claim]
    needed = getattr(claim, "needs", None)
    if needed is None:
        return claim
    return dataclasses.replace(claim, needs=tuple(name for name in needed if name != label))
