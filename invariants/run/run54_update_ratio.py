"""RUN-54 update-ratio: a step is small beside the weights."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-54",
    slug="update-ratio",
    severity=Severity.WARN,
    statement="the update of a weight matrix is not larger than the matrix itself, look after look",
    why="a rate too large by orders throws away what was learnt at every step; one too small never leaves the initialisation",
    quantity="norm of the update, relative to that of the weights",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="with the looks of RUN-16, on samples; after three in a row",
    limits=(
        "vectors and numbers, and what starts at zero",
        "while the rate rises",
    ),
    source="https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html",
    example="optimizer = Adam(model.parameters(), lr=10.0)",
    mended="optimizer = Adam(model.parameters(), lr=1e-3)",
    declare='Spec(suppress=[Suppression(rule="update-ratio", reason="…")])',
    holds=(Witness(0.001, (1.0,), "the usual"),),
    violates=(Witness(4.0, (1.0,), "four times the weights"),),
)
