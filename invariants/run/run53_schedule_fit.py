"""RUN-53 schedule-fit: the schedule that fits a log does not climb past its own end."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-53",
    slug="schedule-fit",
    severity=Severity.WARN,
    statement="the schedule that fits every logged rate does not climb again past its own total",
    why="a cosine whose progress is not clamped is back at its peak at twice its total",
    quantity="rows past the total of a fitting schedule that is not clamped",
    unit="rows",
    form=Form.AT_MOST,
    seen_by=("audit",),
    when="over the whole log",
    limits=(
        "step decays, exponential decays and restarts are not reconstructed",
        "few digits leave neighbouring schedules apart by nothing",
    ),
    source="https://github.com/ivadomed/ivadomed/issues/57",
    example="lr = peak * (1 + math.cos(math.pi * step / total)) / 2",
    mended="lr = peak * (1 + math.cos(math.pi * min(step / total, 1))) / 2",
    declare="trainer audit LOG --schedule cosine --total-steps N",
    holds=(Witness(0, (0,), "clamped"),),
    violates=(Witness(8, (0,), "it climbs"),),
)
