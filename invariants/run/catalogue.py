"""The RUN family: an explicit ordered tuple."""

from __future__ import annotations

import difflib

from karat.core.errors import KaratError
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
    run32_overfit,
    run37_split,
    run47_loss_trend,
    run48_validation,
    run50_log_steps,
    run51_tokens,
    run52_declarations,
    run53_schedule_fit,
    run55_lr_past_end,
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
    run32_overfit.RULE,
    run37_split.RULE,
    run47_loss_trend.RULE,
    run48_validation.RULE,
    run50_log_steps.RULE,
    run51_tokens.RULE,
    run52_declarations.RULE,
    run53_schedule_fit.RULE,
    run55_lr_past_end.RULE,
)


def find_rule(name: str) -> Rule:
    """The rule with this id or slug, in any case; KaratError with the nearest names when there is none."""
    known = {key: rule for rule in RULES for key in (rule.id.lower(), rule.slug)}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3)
    raise KaratError(
        f"there is no rule {name!r}",
        required=f"an id or slug of the RUN family: {RULES[0].id} to {RULES[-1].id}",
        next_step=f"did you mean {' or '.join(near)}?" if near else "trainer explain lists them all",
    )
