"""RUN-41 labels: labels are of the declared classes."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-41",
    slug="labels",
    severity=Severity.FAIL,
    statement="labels lie in the declared classes, and more than one of them occurs",
    why="a wrong column, or labels that count from one, train without an error",
    quantity="labels outside the classes, or classes that never occur",
    unit="labels",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=LOOKS,
    limits=(
        "FAIL only for labels outside Spec(classes=…)",
        "batches of one class alone: in three looks in a row, after batches of several, where chance does not explain it",
        "a quarter of the declared classes that never occur is a WARN, after 24 labels for each",
    ),
    source="https://github.com/pyg-team/pytorch_geometric/issues/441",
    example="y = table[:, 0]  # the wrong column: always 0",
    mended="y = table[:, 3]",
    declare="Spec(classes=4)",
    holds=(Witness(0, (0,), "all within"),),
    violates=(Witness(7, (0,), "seven beyond the last class"),),
)
