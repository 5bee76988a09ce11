"""RUN-30 twins: parallel parts differ."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-30",
    slug="twins",
    severity=Severity.WARN,
    statement="parallel parts and units of a layer differ",
    why="equal parts get equal gradients and stay equal: ten streams that are one",
    quantity="parts that equal another",
    unit="parts",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step; parameters and gradients in the first steps and in turn to step 64",
    limits=(
        "equal bits only",
        "one forward in eval mode; modules that are called by themselves by their parameters and gradients, which are to be "
        "equal in three steps, and of which an optimizer holds all",
        "units that are all zero are left alone",
    ),
    source="https://github.com/pytorch/pytorch/issues/86274",
    example="branches = [copy.deepcopy(branch) for _ in range(4)]",
    mended="branches = [make_branch() for _ in range(4)]",
    declare='Spec(suppress=[{"rule": "twins", "reason": "upcycled experts"}])',
    holds=(Witness(0, (0,), "all differ"),),
    violates=(Witness(1, (0,), "a copy"),),
)
