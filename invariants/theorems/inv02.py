"""INV-2 in Coq: the prune threshold's certificate, over all learning curves."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

from karat.core.formulas import halving
from karat.core.obligation import Counterpart, Obligation, Theorem
from karat.invariants import inv02_asha_threshold


def _loss_point(random: Random) -> dict[str, Any]:
    """Losses above, below and, one time in three, at the threshold."""
    threshold = Fraction(random.randint(-4, 12), random.randint(1, 4))
    loss = random.choice(
        [threshold, threshold + Fraction(random.randint(-5, 5), 20), Fraction(random.randint(-4, 12), 3)]
    )
    return {"loss": loss, "threshold": threshold}


def _certificate_point(random: Random) -> dict[str, Any]:
    return {
        name: Fraction(random.randint(-9, 30), random.choice([1, 5, 10])) for name in ("threshold", "target", "gap")
    }


_FILE = "INV02_asha_threshold"
_PRUNE = Counterpart("INV02_asha_threshold.should_prune", halving.should_prune,
                     "INV02_asha_threshold.should_prune (K := on_Q) {loss} {threshold}", _loss_point,
                     run=lambda v: halving.should_prune(**v))  # fmt: skip
_MARGIN = Counterpart("INV02_asha_threshold.certificate_margin", halving.certificate_margin,
                      "parts (INV02_asha_threshold.certificate_margin (K := on_Q) {threshold} {target} {gap})",
                      _certificate_point, run=lambda v: halving.certificate_margin(**v))  # fmt: skip
_GUARD = Counterpart("INV02_asha_threshold.certificate_margin", inv02_asha_threshold.margin,
                     "parts (INV02_asha_threshold.certificate_margin (K := on_Q) {threshold} {target} {gap})",
                     _certificate_point,
                     run=lambda v: inv02_asha_threshold.margin(v, inv02_asha_threshold.Certificate()))  # fmt: skip

_RULE = (halving.should_prune,)

THEOREMS: tuple[Obligation, ...] = (
    Theorem("INV-2.coq-pruned", "a real loss is pruned iff it is above the threshold", _RULE, file=_FILE, theorem="pruned_iff",
            counterparts=(_PRUNE,)),
    Theorem("INV-2.coq-sufficient", "if target + gap <= threshold, no trial that reaches the target is pruned at any "
            "step up to its end, for every learning curve that is never more than the gap above its end", _RULE,
            file=_FILE, theorem="certificate_suffices", counterparts=(_PRUNE,)),
    Theorem("INV-2.coq-necessary", "if target + gap > threshold and gap >= 0, at every rung before the last step some learning "
            "curve that never rises, keeps to the gap and reaches the target is pruned", _RULE, file=_FILE,
            theorem="certificate_is_necessary", counterparts=(_PRUNE,)),
    Theorem("INV-2.coq-exact", "for gap >= 0 the certificate's margin is >= 0 iff no learning curve within the gap that reaches "
            "the target is pruned", (halving.certificate_margin, inv02_asha_threshold.margin, halving.should_prune),
            file=_FILE, theorem="certificate_is_exact", counterparts=(_PRUNE, _MARGIN, _GUARD)),
    Theorem("INV-2.coq-no-gap", "with no gap declared no threshold is safe: at every rung before the last step some learning "
            "curve that never rises and reaches the target is pruned", _RULE, file=_FILE, theorem="no_gap_no_threshold",
            counterparts=(_PRUNE,)),
    Theorem("INV-2.coq-default", "the default certificate, 3.5 for target 1.5 and gap 2, holds with margin 0",
            (halving.certificate_margin,), file=_FILE, theorem="default_certificate", counterparts=(_MARGIN,)),
    Theorem("INV-2.coq-seed-2.65", "with the default target and gap a threshold of 2.65 prunes, at every rung before the last "
            "step, some trial within the gap that reaches the target", _RULE, file=_FILE, theorem="seed_threshold_prunes",
            counterparts=(_PRUNE,)),
    Theorem("INV-2.coq-seed-identity", "phi^2 + phi^-2 + 1/2 is the default threshold, 7/2", (), file=_FILE,
            theorem="seed_identity"),
    Theorem("INV-2.coq-seed-sum", "phi^2 + phi^-2 + phi^-4 is between 3.1458 and 3.1459", (), file=_FILE,
            theorem="seed_sum_enclosed"),
    Theorem("INV-2.coq-seed-sum-is-not", "phi^2 + phi^-2 + phi^-4 is not 7/2, contrary to the seed", (), file=_FILE,
            theorem="seed_sum_is_not"),
)  # fmt: skip
