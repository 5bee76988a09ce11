"""RUN-19 ema: the average follows the model."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-19",
    slug="ema",
    severity=Severity.FAIL,
    statement="after each step averaged weights become decay * averaged + (1 - decay) * model, once, of the model that trains",
    why="an average that stands still, lags, or copies the model looks like one: it has the right shapes and a plausible loss",
    quantity="distance of the average from what it should be, of the update that it should have got",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="each step on a sample of one averaged parameter in turn; in the first steps and every K of all",
    limits=(
        "a decay that is not declared is only required to lie in [0, 1]",
        "parameters that it lacked from the start on are taken as meant",
        "an update of every few steps from the start on is not judged by its rate",
        "that it is updated before the step is seen where averages are written in place",
    ),
    source="https://github.com/huggingface/diffusers/issues/1864",
    example="mean.mul_(1 - decay).add_(value, alpha=decay)  # exchanged",
    mended="mean.mul_(decay).add_(value, alpha=1 - decay)",
    declare="watch(model, optimizer, ema=averaged, spec=Spec(ema=0.999))",
    holds=(Witness(0.0, (0.01,), "exactly the average"),),
    violates=(Witness(0.8, (0.01,), "decay and 1 - decay exchanged, at decay 0.9"),),
)
