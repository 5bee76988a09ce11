"""Definitions in Coq against the running functions that they stand for, at exact points.

Coq computes a definition on rationals, the running function is called with Fractions, and every result must be equal.
The points are drawn with a fixed seed, so that two runs ask the same.
"""

from __future__ import annotations

import inspect
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from karat.core.obligation import Counterpart
from karat.core.provenance import qualified_name
from karat.core.report import write_text
from karat.proofs.coq_build import BUILD, Toolchain, run_coq
from karat.proofs.coq_text import value_of

SEED = 20_260_302
Points = list[tuple[Mapping[str, Any], Any]]
"""Points, each with what the running function gives there."""


def term_of(value: Any) -> str:
    """A value as a Coq term: rationals for Fractions, integers of Z for ints, lists and tuples of these."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"({value})%Z"
    if isinstance(value, Fraction):
        return f"({value.numerator} # {value.denominator})%Q"
    if isinstance(value, tuple):
        return f"({', '.join(map(term_of, value))})"
    if isinstance(value, list):
        return f"({' :: '.join([*map(term_of, value), 'nil'])})"
    raise TypeError(f"{value!r} has no term: a point holds Fractions, ints, bools, and lists and tuples of these")


def printed(value: Any) -> Any:
    """A result of a running function as Coq prints its counterpart: a number by numerator and denominator or as it is."""
    if isinstance(value, Fraction):
        return (value.numerator, value.denominator)
    if isinstance(value, (list, tuple)):
        return type(value)(printed(item) for item in value)
    return value


def same(ours: Any, coq: Any) -> bool:
    """Whether a running function's result is what Coq computed; an int is equal to a number printed in parts."""
    if isinstance(ours, bool) or isinstance(coq, bool):
        return ours is coq
    if isinstance(ours, (int, Fraction)) and isinstance(coq, tuple):
        return len(coq) == 2 and coq == (Fraction(ours).numerator, Fraction(ours).denominator)
    if isinstance(ours, (int, Fraction)):
        return isinstance(coq, int) and ours == coq
    if isinstance(ours, (list, tuple)):
        return isinstance(coq, (list, tuple)) and len(ours) == len(coq) and all(map(same, ours, coq))
    return False


def points_of(counterpart: Counterpart) -> list[Mapping[str, Any]]:
    """The points at which it is compared, always the same."""
    random = Random(SEED)
    return [counterpart.sample(random) for _ in range(counterpart.points)]


def tie(one: Counterpart) -> str:
    """`INV08_lr_band.wsd is core.formulas.schedule.wsd`: a definition may stand for a formula and for a guard's margin."""
    return f"{one.definition} is {qualified_name(one.function)}"


def compare(counterparts: Sequence[Counterpart], tool: Toolchain, jobs: int, build: Path = BUILD) -> dict[str, str]:
    """Tie -> the first point at which the definition is not what the running function gives, in words, or nothing."""
    shares = [counterparts[k::jobs] for k in range(max(1, jobs))]
    with ThreadPoolExecutor(len(shares)) as pool:
        found = pool.map(
            lambda numbered: _compare(numbered[1], tool, build, f"Karat_points_{numbered[0]}"), enumerate(shares)
        )
        return {name: failure for one in found for name, failure in one.items()}


def _compare(counterparts: Sequence[Counterpart], tool: Toolchain, build: Path, called: str) -> dict[str, str]:
    failures: dict[str, str] = {}
    if not counterparts:
        return failures
    nonce = secrets.token_hex(16)
    lines = [
        "Require Import List ZArith QArith. Import ListNotations.",
        f"From Karat Require {' '.join(sorted({one.definition.split('.', 1)[0] for one in counterparts}))}.",
        "From Karat Require Import Carrier.",
        "Set Printing Width 100000. Set Printing Depth 1000000. Open Scope Z_scope.",
    ]
    drawn: dict[str, tuple[Counterpart, Points]] = {}
    for one in counterparts:
        try:
            points, terms = ours_of(one)
        except Exception as error:  # the function, its sample or the term: whatever it is, they were not compared
            failures[tie(one)] = f"not compared: {type(error).__name__}: {error}"
            continue
        lines.append(f'Goal True. idtac "{nonce} {len(drawn)}". Abort.')
        lines.append(f"Eval vm_compute in (({') :: ('.join(terms)}) :: nil).")
        drawn[tie(one)] = one, points
    lines.append(f'Goal True. idtac "{nonce} end". Abort.')
    write_text(build / f"{called}.v", "\n".join(lines) + "\n")
    output, failure, _ = run_coq(tool, build, called)
    if failure and len(drawn) > 1:
        left = [one for one, _ in drawn.values()]
        middle = len(left) // 2
        return failures | _compare(left[:middle], tool, build, called) | _compare(left[middle:], tool, build, called)
    if failure:
        return failures | dict.fromkeys(drawn, f"cannot be evaluated: {failure}")
    parts = output.split(nonce)
    for place, (name, (_, points)) in enumerate(drawn.items()):
        text = parts[place + 1].split("\n", 1)[1] if len(parts) > place + 1 and "\n" in parts[place + 1] else ""
        failures[name] = _first_difference(points, text)
    return failures


def ours_of(one: Counterpart) -> tuple[Points, list[str]]:
    """(points with the running function's results, Coq terms); ValueError for a comparison that would say nothing."""
    if not re.search(rf"(?<![\w'.]){re.escape(one.definition)}(?![\w'])", one.term):
        raise ValueError(f"the term does not mention {one.definition}")
    drawn = points_of(one)
    if not drawn:
        raise ValueError("no point")
    code, called = getattr(inspect.unwrap(one.function), "__code__", None), False

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal called
        called = called or (event == "call" and frame.f_code is code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        results = [one.run(point) for point in drawn]
    finally:
        sys.setprofile(before)
    if not called:
        raise ValueError(f"{qualified_name(one.function)} was not called")
    terms = [one.term.format(**{name: term_of(value) for name, value in point.items()}) for point in drawn]
    return list(zip(drawn, results, strict=True)), terms


def _first_difference(points: Points, text: str) -> str:
    try:
        computed = value_of(text.rstrip("\n"))
    except ValueError as error:
        return f"Coq's values are not understood: {error}"
    if not isinstance(computed, list) or len(computed) != len(points):
        return f"{len(points)} points, and Coq gives {len(computed) if isinstance(computed, list) else 'no list'}"
    for (point, ours), coq in zip(points, computed, strict=True):
        if not same(ours, coq):
            where = ", ".join(f"{name} = {value}" for name, value in point.items())
            return f"at {where} Coq computes {coq}, the running function gives {printed(ours)}"
    return ""
