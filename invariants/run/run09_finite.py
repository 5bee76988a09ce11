"""RUN-9 finite: gradients, parameters and the loss are numbers at every step."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-9",
    slug="finite",
    severity=Severity.FAIL,
    statement="no step is taken on a loss, a gradient or a parameter that holds NaN or an infinity",
    why="one such gradient makes its parameters NaN for ever, and from the next forward on everything",
    quantity="tensors that are not finite",
    unit="tensors",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight", "audit"),
    when=f"a small gradient and logged losses: every step; the others: {TURNS}, of large models a part in turn; over the whole "
    "log",
    limits=(
        "steps that the loop leaves out, for then no optimizer.step() is seen",
        "in large models a gradient that is in no other's way is seen when its turn comes, a few steps late",
        "gradients that the loop makes finite are a WARN, seen on a few gradients at turns, and in the step after one that "
        "applied nothing but zeros; not where a hook of the loop's own on the parameter made them so",
        "infinite gradients that a GradScaler finds, and whose step it skips",
        "where it began is not said when the model is not called as a whole",
    ),
    source="https://github.com/pytorch/pytorch/issues/6394",
    example="loss = (prediction - target).pow(2).sum().sqrt()  # at zero the gradient is 0 * inf",
    mended="loss = ((prediction - target).pow(2).sum() + 1e-12).sqrt()",
    declare='Spec(suppress=[Suppression(rule="finite", reason="…")])',
    holds=(Witness(0, (0,), "all are finite"),),
    violates=(Witness(1, (0,), "one is not"),),
)
