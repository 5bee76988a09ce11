"""The catalogue: an explicit ordered tuple, and plug-ins from other packages by the entry point karat.invariants."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import metadata

from karat.core.errors import KaratError
from karat.core.invariant import Invariant
from karat.invariants.inv01_descent import INVARIANT as DESCENT
from karat.invariants.inv02_asha_threshold import INVARIANT as ASHA_THRESHOLD
from karat.invariants.inv03_gf16_safe_domain import INVARIANT as GF16_SAFE_DOMAIN
from karat.invariants.inv04_nca_entropy_band import INVARIANT as NCA_ENTROPY_BAND
from karat.invariants.inv06_ema_decay import INVARIANT as EMA_DECAY
from karat.invariants.inv07_victory_gate import INVARIANT as VICTORY_GATE
from karat.invariants.inv08_lr_band import INVARIANT as LR_BAND
from karat.invariants.inv11_mhc_doubly_stochastic import INVARIANT as MHC_DOUBLY_STOCHASTIC

BUILT_IN: tuple[Invariant, ...] = (
    DESCENT,
    ASHA_THRESHOLD,
    GF16_SAFE_DOMAIN,
    NCA_ENTROPY_BAND,
    EMA_DECAY,
    VICTORY_GATE,
    LR_BAND,
    MHC_DOUBLY_STOCHASTIC,
)


def plugged_in() -> tuple[Invariant, ...]:
    """The invariants that other installed packages offer under the entry point `karat.invariants`."""
    found = []
    for entry in sorted(metadata.entry_points(group="karat.invariants"), key=lambda e: e.name):
        item = entry.load()
        if not isinstance(item, Invariant):
            raise KaratError(
                f"the entry point {entry.name} = {entry.value} is a {type(item).__name__}",
                required="an Invariant",
                next_step=f"mend or uninstall the package {entry.dist.name if entry.dist else '(unknown)'}",
            )
        found.append(item)
    return tuple(found)


def catalogue() -> tuple[Invariant, ...]:
    """Every invariant: the built-in ones in order, then plug-ins. KaratError when an id or a slug occurs twice."""
    return checked((*BUILT_IN, *plugged_in()))


def checked(invariants: Iterable[Invariant]) -> tuple[Invariant, ...]:
    """The invariants as given, or KaratError when an id, a slug or an obligation's id occurs twice."""
    result = tuple(invariants)
    names = [name for i in result for name in (i.id, i.slug, *(o.id for o in i.obligations))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise KaratError(f"{', '.join(twice)} is defined twice", required="distinct ids and slugs in the catalogue")
    return result


def find(name: str) -> Invariant:
    """The invariant with this id or slug, in any case; KaratError with the nearest names when there is none."""
    known = {key: i for i in catalogue() for key in (i.id, i.slug)}
    for key, invariant in known.items():
        if key.lower() == name.lower():
            return invariant
    near = difflib.get_close_matches(name.upper(), known, n=3) or difflib.get_close_matches(name.lower(), known, n=3)
    raise KaratError(
        f"there is no invariant {name!r}",
        required="an id or slug of the catalogue: " + ", ".join(i.id for i in catalogue()),
        next_step=f"did you mean {' or '.join(near)}?" if near else "",
    )
