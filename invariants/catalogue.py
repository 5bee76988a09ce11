"""The catalogue: an explicit ordered tuple, and plug-ins from other packages by the entry point karat.invariants."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable

from karat.core.errors import KaratError
from karat.core.invariant import Invariant
from karat.invariants import template
from karat.invariants.inv01_descent import INVARIANT as DESCENT
from karat.invariants.inv02_asha_threshold import INVARIANT as ASHA_THRESHOLD
from karat.invariants.inv03_gf16_safe_domain import INVARIANT as GF16_SAFE_DOMAIN
from karat.invariants.inv04_nca_entropy_band import INVARIANT as NCA_ENTROPY_BAND
from karat.invariants.inv05_lucas_closure import INVARIANT as LUCAS_CLOSURE
from karat.invariants.inv06_ema_decay import INVARIANT as EMA_DECAY
from karat.invariants.inv07_victory_gate import INVARIANT as VICTORY_GATE
from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.inv09_qk_gain import INVARIANT as QK_GAIN
from karat.invariants.inv10_asha_rungs import INVARIANT as ASHA_RUNGS
from karat.invariants.inv11_mhc_doubly_stochastic import INVARIANT as MHC_DOUBLY_STOCHASTIC
from karat.invariants.inv12_ternary_exact import INVARIANT as TERNARY_EXACT
from karat.invariants.plugins import Found, discover
from karat.invariants.run.limit01_comparisons import INVARIANT as RUN_LIMITS
from karat.invariants.theorems import THEOREMS


def _with_theorems(invariant: Invariant) -> Invariant:
    """The invariant with its theorems in Coq behind what its own file states."""
    return dataclasses.replace(invariant, obligations=(*invariant.obligations, *THEOREMS.get(invariant.id, ())))


BUILT_IN: tuple[Invariant, ...] = tuple(
    map(
        _with_theorems,
        (
            DESCENT,
            ASHA_THRESHOLD,
            GF16_SAFE_DOMAIN,
            NCA_ENTROPY_BAND,
            LUCAS_CLOSURE,
            EMA_DECAY,
            VICTORY_GATE,
            LR_BAND,
            QK_GAIN,
            ASHA_RUNGS,
            MHC_DOUBLY_STOCHASTIC,
            TERNARY_EXACT,
            RUN_LIMITS,
        ),
    )
)


@functools.cache
def found(with_probes: bool = False) -> Found:
    """The invariants that other installed packages offer, and why the broken ones cannot be used; looked up once."""
    ours = (*BUILT_IN, template.INVARIANT)
    return discover((name for i in ours for name in (i.id, i.slug, *(o.id for o in i.obligations))), with_probes)


def catalogue() -> tuple[Invariant, ...]:
    """Every invariant: the built-in ones in order, then plug-ins; a broken one is left out, and `found` says why."""
    return (*checked(BUILT_IN), *(plugin.invariant for plugin in found().plugins))


def checked(invariants: Iterable[Invariant]) -> tuple[Invariant, ...]:
    """The invariants as given, or KaratError when an id, a slug or an obligation's id occurs twice."""
    result = tuple(invariants)
    names = [name for i in result for name in (i.id, i.slug, *(o.id for o in i.obligations))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise KaratError(f"{', '.join(twice)} is defined twice", required="distinct ids and slugs in the catalogue")
    return result


def find(name: str, among: Iterable[Invariant] | None = None) -> Invariant:
    """The invariant of the catalogue, or among those given, with this id or slug, in any case; KaratError with the
    nearest names when there is none."""
    invariants, broken = catalogue() if among is None else tuple(among), found().broken
    known = {key: i for i in invariants for key in (i.id, i.slug)}
    for key, invariant in known.items():
        if key.lower() == name.lower():
            return invariant
    near = difflib.get_close_matches(name.upper(), known, n=3) or difflib.get_close_matches(name.lower(), known, n=3)
    raise KaratError(
        "; ".join((f"there is no invariant {name!r}", *(f"left out: {error.seen}" for error in broken))),
        required="an id or slug of the catalogue: " + ", ".join(i.id for i in invariants),
        next_step=(f"did you mean {' or '.join(near)}? " if near else "") + "trainer explain lists them all",
    )
