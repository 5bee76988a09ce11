"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

from karat.invariants.run import run01_step_budget, run08_gradient_reach, run11_gradient_fresh
from karat.invariants.run.rule import Rule

RULES: tuple[Rule, ...] = (
    run01_step_budget.RULE,
    run08_gradient_reach.RULE,
    run11_gradient_fresh.RULE,
)
