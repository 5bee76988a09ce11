"""RUN-14 loss-scale: gradients of a scaled loss are unscaled once before they are applied, and steps are taken."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-14",
    slug="loss-scale",
    severity=Severity.FAIL,
    statement="what a step applies was scaled once and unscaled once, and the scaler does not skip step after step",
    why="a GradScaler skips silently: the loop goes on, the scale shrinks, and nothing is learnt any more",
    quantity="steps that the scaler skipped in a row",
    unit="steps",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every step; skipped steps at every eighth forward; the factor of the gradients in the first steps and every K",
    limits=(
        "the factor of the gradients is read off a linear layer that gives the captured output, or off logged losses",
        "torch itself raises where update() is never called or unscale_() is called twice",
        "scalers other than torch.amp.GradScaler and its subclasses",
    ),
    source="https://github.com/IAHispano/Applio/pull/860",
    example="scaler.scale(loss).backward()\noptimizer.step()",
    mended="scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
    declare="watch(model, optimizer, scaler=scaler)",
    holds=(Witness(0, (8,), "no step was skipped"), Witness(8, (8,), "a bad stretch of data")),
    violates=(Witness(9, (8,), "one more"), Witness(1, (0,), "one way in which the scale is wrong")),
)
