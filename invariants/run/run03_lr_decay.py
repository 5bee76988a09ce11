"""RUN-3 lr-decay: a rate that has fallen does not rise again unless a restart was declared."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-3",
    slug="lr-decay",
    severity=Severity.FAIL,
    statement="once the rate has fallen it does not rise again, but at declared restarts",
    why="a cosine that is not clamped climbs back to its peak past its end, and undoes what the decay won",
    quantity="learning rate of a group",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch", "audit"),
    when="every step; every row of a log",
    limits=(
        "WARN where neither a declaration nor the scheduler's own length says that the decay was over",
        "schedulers that rise by design are left alone: cyclic, warm restarts, one cycle, sequences",
        "without a scheduler, a rise after fewer than three falls is reported from its third step on",
    ),
    source="https://github.com/ivadomed/ivadomed/issues/57",
    example="scheduler = CosineAnnealingLR(optimizer, T_max=1000)\nfor step in range(1500):\n    train_step()\n"
    "    scheduler.step()",
    mended="scheduler = CosineAnnealingLR(optimizer, T_max=1500)",
    declare='Spec(restarts=[1000, 2000]), or Spec(restarts="any") for cyclic rates',
    holds=(Witness(1e-4, (1e-4,), "a plateau"), Witness(9e-5, (1e-4,), "a fall")),
    violates=(Witness(1.1e-4, (1e-4,), "a rise"),),
)
