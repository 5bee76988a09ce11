"""RUN-25 eval-determinism: eval mode is deterministic."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-25",
    slug="eval-determinism",
    severity=Severity.FAIL,
    statement="in eval mode equal inputs give equal outputs",
    why="dropout that does not ask for the mode makes every evaluation worse, by another amount each time",
    quantity="largest difference of two forwards in eval mode",
    unit="of the output",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step, steps 64 and K, then after twice as many; soon after the forward is seen to "
    "change",
    limits=(
        "two forwards on one batch",
        "sampling that is no dropout is left alone unless declared",
    ),
    source="https://github.com/huggingface/transformers/pull/33844",
    example="x = F.dropout(x, 0.1)",
    mended="x = F.dropout(x, 0.1, training=self.training)",
    declare="Spec(deterministic=True) makes it a FAIL, Spec(deterministic=False) turns it off",
    holds=(Witness(0.0, (0.0,), "the same bits"),),
    violates=(Witness(0.2, (0.0,), "dropout in eval mode"),),
)
