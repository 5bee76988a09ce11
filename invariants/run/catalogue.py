"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

from karat.invariants.run import (
    run01_step_budget,
    run08_gradient_reach,
    run11_gradient_fresh,
    run16_parameter_moves,
    run17_frozen,
    run18_weight_decay,
    run19_ema,
    run20_ties,
    run21_replicas,
    run22_buffers,
    run33_precision,
    run35_overflow,
    run54_update_ratio,
)
from karat.invariants.run.rule import Rule

RULES: tuple[Rule, ...] = (
    run01_step_budget.RULE,
    run08_gradient_reach.RULE,
    run11_gradient_fresh.RULE,
    run16_parameter_moves.RULE,
    run17_frozen.RULE,
    run18_weight_decay.RULE,
    run19_ema.RULE,
    run20_ties.RULE,
    run21_replicas.RULE,
    run22_buffers.RULE,
    run33_precision.RULE,
    run35_overflow.RULE,
    run54_update_ratio.RULE,
)
