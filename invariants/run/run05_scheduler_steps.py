"""RUN-5 scheduler-steps: the scheduler is stepped once for an update, of the optimizer that it drives."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-5",
    slug="scheduler-steps",
    severity=Severity.FAIL,
    statement="a scheduler drives the optimizer that is stepped, after its steps, at most once for each",
    why="stepped for each batch of an accumulation the schedule is over in a fraction of the run; on another optimizer it does "
    "nothing",
    quantity="calls of the scheduler beyond one for each update",
    unit="calls",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every step, and at the end",
    limits=(
        "once an epoch is legitimate, so a scheduler that is never stepped is known at the end, or at half of total_steps",
        "FAIL only for the scheduler given to watch that drives another optimizer, and where its length is total_steps",
        "a decay that was over long ago, and a length in updates that was stepped once an epoch, are WARN, for some mean it",
        "the mode of a ReduceLROnPlateau is judged by the names of what is logged: a loss falls, an accuracy rises; in mode "
        "max, by a best that is as large as the cross-entropy was and never rose while that fell, and by whether anything "
        "rose when it lowers the rate; as WARN",
        "that the optimizer of a scheduler no longer steps is told where it keeps moments; as WARN",
        "schedulers that are not torch's LRScheduler keep no count",
    ),
    source="https://github.com/huggingface/accelerate/issues/963",
    example="for batch in loader:\n    loss(batch).backward()\n    if full:\n        optimizer.step()\n    scheduler.step()",
    mended="for batch in loader:\n    loss(batch).backward()\n    if full:\n        optimizer.step()\n        scheduler.step()",
    declare="watch(model, optimizer, scheduler=scheduler, total_steps=1000)",
    holds=(Witness(0, (0,), "once for each update, or more rarely"),),
    violates=(Witness(1, (0,), "twice for one update"),),
)
