"""RUN-13 clipping: the gradient that a step applies is within the declared norm, clipped where it was unscaled."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-13",
    slug="clipping",
    severity=Severity.FAIL,
    statement="at each step the norm of all gradients is at most the declared one, after unscaling",
    why="clipped after the step, or of some parameters only, nothing is bounded; clipped before unscale_ all steps are tiny",
    quantity="2-norm of all gradients of an optimizer",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every step",
    limits=(
        "without a declared norm only a part that is clipped, what is clipped at its scale, or what is clipped after the step "
        "and then let go, in the first steps, as WARN",
        "of sharded gradients it sees this process's part alone",
    ),
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
    example="scaler.scale(loss).backward()\nclip_grad_norm_(model.parameters(), 1.0)\nscaler.step(optimizer)",
    mended="scaler.scale(loss).backward()\nscaler.unscale_(optimizer)\nclip_grad_norm_(model.parameters(), 1.0)\n"
    "scaler.step(optimizer)",
    declare="Spec(clip_norm=1.0)",
    holds=(Witness(1.0, (1.0,), "at the limit"), Witness(0.2, (1.0,), "small by itself")),
    violates=(Witness(1.7, (1.0,), "not clipped"),),
)
