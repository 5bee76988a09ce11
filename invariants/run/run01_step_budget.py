"""RUN-1 step-budget: as many optimizer steps as declared."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-1",
    slug="step-budget",
    severity=Severity.FAIL,
    statement="the run takes its declared total of optimizer steps, no more and no fewer",
    why="a schedule is laid out for a number of steps: past them a cosine climbs again, short of them it never decays",
    quantity="optimizer steps taken",
    unit="steps",
    form=Form.WITHIN,
    seen_by=("watch", "audit"),
    when="every step, and at the end; every row of a log",
    limits=(
        "steps that a GradScaler skips are not counted",
        "it judges nothing without a declared total",
        "in a loop fewer steps are WARN, for it may have been stopped, or go on later",
    ),
    source="https://github.com/huggingface/transformers/issues/33455",
    example="for step in range(2000):  # the schedule was made for 1000\n    train_step()",
    mended="for step in range(total_steps):\n    train_step()",
    declare="watch(model, optimizer, total_steps=1000)",
    holds=(Witness(1000, (0, 1000), "the last declared step"), Witness(1, (0, 1), "a run of one step")),
    violates=(Witness(1001, (0, 1000), "one step too many"), Witness(999, (1000, 1000), "one short, at the end")),
)
