"""RUN-27 dropout: dropout acts in train mode."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-27",
    slug="dropout",
    severity=Severity.WARN,
    statement="dropout that the model declares acts in train mode, and drops less than nearly everything",
    why="a dropout whose result is not used regularises nothing; p is the share that is dropped, not kept",
    quantity="modules of dropout that do not act, or drop more than 0.8",
    unit="modules",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step, steps 64 and K, then after twice as many; soon after the forward is seen to "
    "change",
    limits=(
        "two forwards of one batch",
        "functional dropout is seen by its rate alone",
    ),
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html",
    example="self.dropout(x)\nreturn x",
    mended="return self.dropout(x)",
    declare='Spec(suppress=[{"rule": "dropout", "reason": "…"}])',
    holds=(Witness(0, (0,), "all act"),),
    violates=(Witness(1, (0,), "one is never called"),),
)
