"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

from karat.invariants.run import (
    run01_step_budget,
    run08_gradient_reach,
    run11_gradient_fresh,
    run12_accumulation,
    run23_causality,
    run24_batch_independence,
    run25_eval_determinism,
    run26_mode,
    run27_dropout,
    run28_first_loss,
    run29_softmax,
    run30_twins,
    run31_inputs,
    run36_collapse,
    run39_targets,
    run40_padding,
    run41_labels,
    run49_reduction,
)
from karat.invariants.run.rule import Rule

RULES: tuple[Rule, ...] = (
    run01_step_budget.RULE,
    run08_gradient_reach.RULE,
    run11_gradient_fresh.RULE,
    run12_accumulation.RULE,
    run23_causality.RULE,
    run24_batch_independence.RULE,
    run25_eval_determinism.RULE,
    run26_mode.RULE,
    run27_dropout.RULE,
    run28_first_loss.RULE,
    run29_softmax.RULE,
    run30_twins.RULE,
    run31_inputs.RULE,
    run36_collapse.RULE,
    run39_targets.RULE,
    run40_padding.RULE,
    run41_labels.RULE,
    run49_reduction.RULE,
)
