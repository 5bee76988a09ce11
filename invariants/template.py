"""INV-900 template: copy this file to inv<NN>_<slug>.py, change everything, add it to catalogue.py.

Claim: a gradient norm lies in [0, limit]. It is a small true invariant, contract-tested like all others.
Why it matters: say what goes wrong, silently, without it. Source: say where the claim comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from karat.core import verdict
from karat.core.invariant import Bound, Invariant, Witness
from karat.core.obligation import FloatLaw, Obligation
from karat.core.observation import Phase, Quantity
from karat.core.ops import FLOAT, Number, Ops


# 1. The declared constants: exact, with their source.
@dataclass(frozen=True)
class Limit:
    """The largest gradient norm."""

    limit: float = 10.0


# 2. The margin: distance to the nearest bound, negative outside. It runs on floats, tensors and solver terms.
def margin(values: Mapping[str, Any], declared: Limit, ops: Ops = FLOAT) -> Number:
    """min(limit - norm, norm)."""
    return ops.minimum(declared.limit - values["norm"], values["norm"])


DEFAULT = Limit()


# 3. The claims about the running functions, and points at which they are tried.
def _guard(v: Any, distance: Any, accepts: Any) -> Any:
    return accepts(distance({"norm": v.norm}, DEFAULT, v.ops)) == ((v.norm >= 0.0) & (v.norm <= DEFAULT.limit))


def _norms(random: Random) -> dict[str, float]:
    return {"norm": random.choice([random.uniform(0, 20), math.nan, math.inf, -1.0])}


OBLIGATIONS: tuple[Obligation, ...] = (
    FloatLaw("INV-900.guard", "the guard accepts a double iff it is in [0, limit]", (margin, verdict.accepts),
             variables=("norm",), show=_guard, sample=_norms),
)  # fmt: skip


# 4. How it is cited.
def bounds(declared: Limit) -> tuple[Bound, ...]:
    """The bounds as formula and decimal."""
    return (Bound("limit", "declared", f"{declared.limit:g}"),)


def required(declared: Limit) -> str:
    """The condition as one line."""
    return f"0 <= norm <= {declared.limit:g}"


# 5. The record.
INVARIANT = Invariant(
    id="INV-900",
    slug="template",
    statement="The gradient norm is in [0, limit].",
    why="A template shows the form; this one would catch an exploding gradient.",
    unit="",
    sources=("none: an example",),
    limits=("The limit is a declaration.",),
    phases=(Phase.BEFORE_STEP,),
    quantities=(Quantity("norm", "norm", "", "the global gradient norm before clipping"),),
    parameters=DEFAULT,
    bounds=bounds,
    required=required,
    margin=margin,
    obligations=OBLIGATIONS,
    strategy=lambda st: st.fixed_dictionaries({"norm": st.one_of(st.floats(0, 20), st.floats())}),
    holds=(Witness({"norm": 0.0}, "no gradient"), Witness({"norm": 10.0}, "the limit")),
    violates=(Witness({"norm": -1.0}, "not a norm"), Witness({"norm": math.nextafter(10.0, 11)}, "just above")),
)
