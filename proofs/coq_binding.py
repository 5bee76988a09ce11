"""Definitions in Coq against the running functions that they stand for, at exact points.

Coq computes a definition on rationals, the running function is called with Fractions, and every result must be equal.
The points are drawn with a fixed seed, so that two runs ask the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

from karat.core.obligation import Counterpart
from karat.core.provenance import qualified_name
from karat.core.report import write_text
from karat.proofs.coq_build import BUILD, Toolchain, run_coq
from karat.proofs.coq_text import value_of

SEED = 20_260_302


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
    points = [points_of(one) for one in counterparts]
    nonce = secrets.token_hex(16)
    files = sorted({one.definition.split(".", 1)[0] for one in counterparts})
    lines = [
        "Require Import List ZArith QArith. Import ListNotations.",
        f"From Karat Require {' '.join(files)}.",
        "From Karat Require Import Carrier.",
        "Set Printing Width 100000. Set Printing Depth 1000000. Open Scope Z_scope.",
    ]
    for place, (one, drawn) in enumerate(zip(counterparts, points, strict=True)):
        terms = [one.term.format(**{name: term_of(value) for name, value in point.items()}) for point in drawn]
        lines.append(f'Goal True. idtac "{nonce} {place}". Abort.')
        lines.append(f"Eval vm_compute in (({') :: ('.join(terms)}) :: nil).")
    lines.append(f'Goal True. idtac "{nonce} end". Abort.')
    write_text(build / f"{called}.v", "\n".join(lines) + "\n")
    output, failure, _ = run_coq(tool, build, called)
    if failure:
        if len(counterparts) == 1:
            return {tie(counterparts[0]): f"cannot be evaluated: {failure}"}
        middle = len(counterparts) // 2
        return _compare(counterparts[:middle], tool, build, called) | _compare(
            counterparts[middle:], tool, build, called
        )
    parts = output.split(nonce)
    for place, (one, drawn) in enumerate(zip(counterparts, points, strict=True)):
        failures[tie(one)] = _first_difference(one, drawn, parts[place + 1].split("\n", 1)[1])
    return failures


def _first_difference(one: Counterpart, drawn: Sequence[Mapping[str, Any]], text: str) -> str:
    try:
        computed = value_of(text.rstrip("\n"))
    except ValueError as error:
        return f"Coq's values are not understood: {error}"
    if not isinstance(computed, list) or len(computed) != len(drawn):
        return f"{len(drawn)} points, and Coq gives {len(computed) if isinstance(computed, list) else 'no list'}"
    for point, coq in zip(drawn, computed, strict=True):
        ours = one.run(point)
        if not same(ours, coq):
            where = ", ".join(f"{name} = {value}" for name, value in point.items())
            return f"at {where} Coq computes {coq}, the running function gives {printed(ours)}"
    return ""
