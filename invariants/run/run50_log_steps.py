"""RUN-50 log-steps: the steps of a log rise."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-50",
    slug="log-steps",
    severity=Severity.WARN,
    statement="the step numbers of a log rise from row to row, each once",
    why="a log that goes back holds two runs, or one that was resumed from an older state",
    quantity="rows whose step is not above the one before",
    unit="rows",
    form=Form.AT_MOST,
    seen_by=("audit",),
    when="over the whole log",
    limits=("rows that were never written",),
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/12274",
    example='log.write({"step": epoch_step})',
    mended='log.write({"step": global_step})',
    declare="nothing to declare",
    holds=(Witness(0, (0,), "in order"),),
    violates=(Witness(1, (0,), "one goes back"),),
)
