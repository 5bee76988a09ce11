"""RUN-8 gradient-reach: every trainable parameter gets a gradient that is not all zero."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-8",
    slug="gradient-reach",
    severity=Severity.FAIL,
    statement="what the loss depends on gets a gradient that is not identically zero, within the declared window of steps",
    why="a detached encoder stays at its initial values while the loss falls, and nothing is raised",
    quantity="trainable parameters that the outputs depend on and that got no gradient",
    unit="parameters",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when=f"before the first step; {TURNS}; of models above 16,384 weights each gradient in turn",
    limits=(
        "a gradient that is wrong but not zero; of an autograd.Function of the loop's own only whether its backward multiplies "
        "by the gradient it is given, in the first steps, by the sizes of 1024 numbers or more, as WARN",
        "what is lost in drawing numbers, where other outputs reach the part all the same, in the first step, of outputs "
        "that are not random but for it in eval mode, as WARN",
        "of parameters that are to be trained from a later step on, only that no gradient comes at five looks, as WARN",
        "a part that is frozen in mid-run is WARN; meant where the loop keeps gradients as zeros, and these were set to None",
        "what is cut off in mid-run is told, where the loop calls parts itself, after 8 steps without a gradient; as WARN",
        "requires_grad that is set on a module, or under a name that is nearly that, is WARN where the parameters differ",
        "preflight: one batch and a few virtual steps, and at most 24 parameters without a gradient are tried",
    ),
    source="https://discuss.pytorch.org/t/84911",
    example="loss = head(encoder(x).detach()).sum()",
    mended="loss = head(encoder(x)).sum()",
    declare='Spec(frozen=["encoder"]) or Spec(detached=["encoder"]) where that is meant',
    holds=(Witness(0, (0,), "all are reached"),),
    violates=(Witness(1, (0,), "one is cut off"),),
)
