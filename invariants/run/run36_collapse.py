"""RUN-36 collapse: outputs differ between samples."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-36",
    slug="collapse",
    severity=Severity.WARN,
    statement="different inputs give different outputs",
    why="dead units or a rate too high leave one answer for everything, and the loss flat",
    quantity="looks at which all samples had one output",
    unit="looks",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=LOOKS,
    limits=(
        "a collapse of directions that stops half-way is seen of several outputs, or forwards, of a step, at two looks in a row",
        "a collapse between two steps that are looked at",
        "while every parameter still gets a gradient, as through a codebook, one output for all counts when it lasts 12 steps",
        "the first 8 steps count only after outputs differed",
    ),
    source="https://github.com/open-edge-platform/physical-ai-studio/issues/998",
    example="optimizer = SGD(model.parameters(), lr=100.0)  # all ReLUs die",
    mended="optimizer = SGD(model.parameters(), lr=0.1)",
    declare='Spec(suppress=[{"rule": "collapse", "reason": "…"}])',
    holds=(Witness(0, (0,), "outputs differ"),),
    violates=(Witness(1, (0,), "one output for all"),),
)
