"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

from karat.invariants.run import (
    run01_step_budget,
    run02_lr_schedule,
    run03_lr_decay,
    run04_warmup_ends,
    run05_scheduler_steps,
    run06_lr_range,
    run07_lr_groups,
    run08_gradient_reach,
    run11_gradient_fresh,
    run12_accumulation,
    run13_clipping,
    run14_loss_scale,
)
from karat.invariants.run.rule import Rule

RULES: tuple[Rule, ...] = (
    run01_step_budget.RULE,
    run02_lr_schedule.RULE,
    run03_lr_decay.RULE,
    run04_warmup_ends.RULE,
    run05_scheduler_steps.RULE,
    run06_lr_range.RULE,
    run07_lr_groups.RULE,
    run08_gradient_reach.RULE,
    run11_gradient_fresh.RULE,
    run12_accumulation.RULE,
    run13_clipping.RULE,
    run14_loss_scale.RULE,
)
