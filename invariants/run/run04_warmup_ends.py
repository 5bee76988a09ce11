"""RUN-4 warmup-ends: the warm-up is over when it was declared to be, and in time for a decay."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-4",
    slug="warmup-ends",
    severity=Severity.FAIL,
    statement="the rate stops rising at the end of the declared warm-up, and before the run is over",
    why="a warm-up planned in other units than it is stepped in lasts for the whole run, at a fraction of the rate",
    quantity="steps past the end of the warm-up in which the rate still rises",
    unit="steps",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every step, and at the end",
    limits=(
        "WARN without a declared warm-up: past half of total_steps, or at the end of a run of 20 steps or more",
        "a rate that grows by one factor throughout, as in a range test, is left alone",
    ),
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/5631",
    example="scheduler = LambdaLR(optimizer, lambda n: min(1, n / 500))  # stepped once an epoch, of 20",
    mended="scheduler.step()  # after each optimizer.step()",
    declare='Spec(schedule=Schedule(kind="linear", peak=3e-4, warmup=500, total=10000))',
    holds=(Witness(0, (0,), "the rate is at its peak"),),
    violates=(Witness(1, (0,), "one step past the end it rises"),),
)
