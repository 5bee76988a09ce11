"""RUN-20 ties: tied weights are one tensor."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-20",
    slug="ties",
    severity=Severity.FAIL,
    statement="names declared as tied, or that were one parameter at the start, are one parameter at every step",
    why="loading with assign=True, or copying part by part, leaves two parameters of equal values, which drift apart unseen",
    quantity="tied names that are several tensors",
    unit="names",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when=f"before the first step; {TURNS}, by identity; of more than 16 names in turn",
    limits=(
        "a tie by the forward alone, such as embedding.weight.T, needs no second parameter and is not looked at",
        "models that are watched as two, or a copy of the model that is called, and share all parameters: WARN; of a copy only "
        "where it was made before the guards were attached",
        "what is untied with both parameters in the optimizer is a WARN: it may be meant",
    ),
    source="https://github.com/pytorch/pytorch/issues/188346",
    example="model.load_state_dict(state, assign=True)",
    mended="model.load_state_dict(state, assign=True)\nmodel.head.weight = model.embedding.weight",
    declare='Spec(tied=(("embedding.weight", "head.weight"),))',
    holds=(Witness(0, (0,), "one tensor"),),
    violates=(Witness(1, (0,), "two"),),
)
