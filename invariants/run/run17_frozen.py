"""RUN-17 frozen: what is frozen does not move."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-17",
    slug="frozen",
    severity=Severity.FAIL,
    statement="a parameter that is declared frozen, or was frozen by requires_grad=False, does not move",
    why="a frozen parameter that keeps an old gradient, even one of zeros, is moved on by momentum and weight decay",
    quantity="frozen parameters that moved",
    unit="parameters",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=f"{TURNS} whether up to 64 were written to, one sampled; all at the start, every K, at the end",
    limits=(
        "what never asked for a gradient and is not declared: a target network moves by its own average",
        "a write that leaves the values as they were is none",
    ),
    source="https://github.com/facebookresearch/fairseq/issues/4702",
    example="model.body.requires_grad_(False)  # the gradients of zeros stay\noptimizer.zero_grad(set_to_none=False)",
    mended="model.body.requires_grad_(False)\nfor p in model.body.parameters():\n    p.grad = None",
    declare='Spec(frozen=("backbone.*",))',
    holds=(Witness(0, (0,), "all as they were"),),
    violates=(Witness(1, (0,), "one moved"),),
)
