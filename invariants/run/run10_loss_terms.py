"""RUN-10 loss-terms: every term of the loss trains something."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-10",
    slug="loss-terms",
    severity=Severity.FAIL,
    statement="every term that is given as one of the loss is connected to parameters, and backward goes through it",
    why="a term made under no_grad, of detached tensors, or never added, is logged, falls by itself, and trains nothing",
    quantity="ways in which a term trains nothing",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; in each step in which the terms are given: guards.log(losses={…}) before backward",
    limits=(
        "whether a term reaches all the parameters that it should",
        "terms that are given as numbers, or all of them detached",
        "a term that is not added, when several optimizers take turns: only once the window is over",
    ),
    source="https://github.com/GCYZSL/MoLA/issues/16",
    example='aux = penalty(features.detach())\nguards.log(losses={"ce": ce, "aux": aux})\n(ce + aux).backward()',
    mended='aux = penalty(features)\nguards.log(losses={"ce": ce, "aux": aux})\n(ce + aux).backward()',
    declare='Spec(detached=["aux"]) for a term that is only to be seen',
    holds=(Witness(0, (0,), "each term trains something"),),
    violates=(Witness(1, (0,), "one is detached"),),
)
