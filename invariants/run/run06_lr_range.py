"""RUN-6 lr-range: every learning rate is finite, not negative, in its declared range, and not zero for all groups."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-6",
    slug="lr-range",
    severity=Severity.FAIL,
    statement="every rate is finite, at least 0 and within the declared range, and not all are zero",
    why="past its end a linear decay without a clamp is negative, and the loss is climbed; at rate 0 nothing is learnt",
    quantity="learning rate of a group",
    unit="",
    form=Form.WITHIN,
    seen_by=("watch", "audit"),
    when="every step; every row of a log",
    limits=("WARN for a rate of 0 in all groups: two updates at the start, or five later",),
    source="https://github.com/Project-MONAI/tutorials/issues/630",
    example="LambdaLR(optimizer, lambda n: 1 - n / total)",
    mended="LambdaLR(optimizer, lambda n: max(0.0, 1 - n / total))",
    declare="Spec(lr_range=(0.0, 3e-4))",
    holds=(Witness(3e-4, (0.0, 3e-4), "at the upper end"), Witness(0.0, (0.0, 3e-4), "at the lower end")),
    violates=(Witness(-1e-6, (0.0, 3e-4), "negative"), Witness(0.1, (0.0, 3e-4), "above")),
)
