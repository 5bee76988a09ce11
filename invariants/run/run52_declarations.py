"""RUN-52 declarations: declarations do not contradict each other."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-52",
    slug="declarations",
    severity=Severity.WARN,
    statement="no two declarations of one run contradict each other",
    why="a run that states one total and is started with another is judged by whichever one reads first",
    quantity="quantities that are declared twice with different values",
    unit="",
    form=Form.AT_MOST,
    seen_by=("audit",),
    when="once",
    limits=("declarations in forms that are not read",),
    source="https://github.com/unslothai/unsloth/issues/594",
    example="--total-steps 1000   # and the report says 2000",
    mended="--total-steps 2000",
    declare="trainer audit LOG --total-steps 2000",
    holds=(Witness(0, (0,), "one value each"),),
    violates=(Witness(1, (0,), "two totals"),),
)
