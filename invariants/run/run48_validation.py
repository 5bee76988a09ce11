"""RUN-48 validation: the validation loss is plausible."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

MOST_BELOW = 2
"""Rows at which the validation loss may be below half of the training loss: one or two may be a lucky batch."""

RULE = Rule(
    id="RUN-48",
    slug="validation",
    severity=Severity.WARN,
    statement="the validation loss is at least half of the training loss before it, at all but two rows",
    why="a validation loss far below the training loss is other data, another unit, or a leak",
    quantity="rows at which the validation loss is below half of the training loss",
    unit="rows",
    form=Form.AT_MOST,
    seen_by=("watch", "audit"),
    when="over the whole log",
    limits=(
        "strong dropout and augmentation raise the training loss",
        "leaks that lower it by less",
        "a validation loss that is too high only where it is above the first training loss at the first three evaluations",
        "a training loss that is logged as a tensor and is a sum of terms is not compared",
    ),
    source="https://github.com/microsoft/seismic-deeplearning/issues/233",
    example="val = train[:1000]  # inside the training set",
    mended="train, val = data[1000:], data[:1000]",
    declare="guards.log(loss=…, val_loss=…)",
    holds=(Witness(2, (MOST_BELOW,), "two rows"),),
    violates=(Witness(3, (MOST_BELOW,), "three rows"),),
)
