"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

from karat.invariants.run import (
    run01_step_budget,
    run08_gradient_reach,
    run09_finite,
    run10_loss_terms,
    run11_gradient_fresh,
    run15_optimizer_parameters,
    run34_straight_through,
)
from karat.invariants.run.rule import Rule

RULES: tuple[Rule, ...] = (
    run01_step_budget.RULE,
    run08_gradient_reach.RULE,
    run09_finite.RULE,
    run10_loss_terms.RULE,
    run11_gradient_fresh.RULE,
    run15_optimizer_parameters.RULE,
    run34_straight_through.RULE,
)
