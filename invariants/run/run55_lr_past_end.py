"""RUN-55 lr-past-end: past the declared total the rate stays at its end."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-55",
    slug="lr-past-end",
    severity=Severity.FAIL,
    statement="past the declared total the rate is not above what it was at the end, nor above the declared floor",
    why="steps past the end of a schedule are trained at a rate that nobody chose",
    quantity="logged rate past the total",
    unit="",
    form=Form.AT_MOST,
    seen_by=("audit",),
    when="over the whole log",
    limits=("rates between the rows",),
    source="https://github.com/ivadomed/ivadomed/issues/57",
    example="for step in range(2000):  # the schedule was made for 1000\n    train_step()\n    scheduler.step()",
    mended="for step in range(1000):\n    train_step()\n    scheduler.step()",
    declare="trainer audit LOG --total-steps 1000 --floor 0.002",
    holds=(Witness(0.002, (0.002,), "at the floor"),),
    violates=(Witness(0.02, (0.002,), "back at the peak"),),
)
