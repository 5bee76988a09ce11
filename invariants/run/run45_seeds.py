"""RUN-45 seeds: runs that count as independent are not one and the same."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-45",
    slug="seeds",
    severity=Severity.FAIL,
    statement="no two runs that count as independent start from the same weights with the same first batch, or log the same",
    why="a seed that is not used makes one run of three, and a spread of nothing out of their differences",
    quantity="pairs of runs that are one",
    unit="pairs",
    form=Form.AT_MOST,
    seen_by=("independent", "comparisons"),
    when="when several finished runs are given to karat.invariants.runtime.independent",
    limits=(
        "equal weights with other data may be meant: that is a WARN",
        "the first batch is known only where the model's forward was seen",
        "logs of fewer than three rows, or with one value throughout",
    ),
    source="https://github.com/SpectrumCollaborationChallenge/phase1-hurdles/issues/14",
    example="seed = arguments.seed or 1  # seed 0 counts as none",
    mended="seed = 1 if arguments.seed is None else arguments.seed",
    declare="independent([report_1, report_2, report_3])",
    holds=(Witness(0, (0,), "all runs differ"),),
    violates=(Witness(1, (0,), "two runs are one"),),
)
