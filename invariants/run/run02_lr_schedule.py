"""RUN-2 lr-schedule: every update uses the learning rate that was declared for it."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-2",
    slug="lr-schedule",
    severity=Severity.FAIL,
    statement="the rate of each update is that of the declared schedule, also past its end",
    why="a schedule that counts batches, epochs or its own calls is another schedule, and its curve still looks like one",
    quantity="learning rate of the first group",
    unit="",
    form=Form.AGREES,
    seen_by=("watch", "audit"),
    when="every step of the first optimizer; every row of a log",
    limits=(
        "it judges nothing without a declared schedule",
        "a resumed run may start where its state says; steps that a scaler skips may count or not",
    ),
    source="https://github.com/huggingface/diffusers/issues/4387",
    example="scheduler = cosine(optimizer, total=len(loader) * epochs)  # stepped once for 4 batches",
    mended="scheduler = cosine(optimizer, total=len(loader) * epochs // 4)",
    declare='Spec(schedule=Schedule(kind="cosine", peak=3e-4, warmup=100, total=1000)), or a function of the update',
    holds=(Witness(3e-4, (3e-4, 3e-10), "the declared rate"), Witness(0.0, (0.0, 1e-13), "the floor at zero")),
    violates=(Witness(1.5e-4, (3e-4, 3e-10), "half of it"), Witness(3e-6, (0.0, 1e-13), "above the floor")),
)
