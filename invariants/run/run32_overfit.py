"""RUN-32 overfit: a few dozen steps on one batch lower its loss."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-32",
    slug="overfit",
    severity=Severity.WARN,
    statement="a few dozen steps on one batch lower its loss clearly",
    why="a set-up that cannot learn one batch by heart will not learn a data set, and it takes seconds to see",
    quantity="share of the first loss that the loss fell by",
    unit="",
    form=Form.AT_LEAST,
    seen_by=("preflight",),
    when="before the first step",
    limits=(
        "a heuristic: 5 % of the first loss, with the given optimizer or Adam",
        "on a part of the batch where time is short",
    ),
    source="https://karpathy.github.io/2019/04/25/recipe/",
    example="optimizer = SGD(model.parameters(), lr=1e-9)",
    mended="optimizer = SGD(model.parameters(), lr=1e-2)",
    declare="Spec(seconds=30) gives it more time",
    holds=(Witness(0.4, (0.05,), "the loss fell by 40 %"),),
    violates=(Witness(0.0, (0.05,), "it did not fall"),),
)
