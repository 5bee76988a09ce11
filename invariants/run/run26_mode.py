"""RUN-26 mode: each forward in its mode."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-26",
    slug="mode",
    severity=Severity.WARN,
    statement="training forwards run in train mode, evaluations in eval mode, where the two differ",
    why="after a validation without model.train() dropout is off and batch norm is frozen for the rest of the run",
    quantity="forwards in the wrong mode",
    unit="forwards",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every forward",
    limits=(
        "models without dropout and batch norm are the same in both modes",
        "a part that stays in eval mode is seen after an evaluation, where it acted before it and is not frozen",
        "forwards without gradients that come in most steps are taken for targets, not for evaluations",
    ),
    source="https://github.com/wkentaro/pytorch-fcn/pull/56",
    example="model.eval()\nvalidate(model)",
    mended="model.eval()\nvalidate(model)\nmodel.train()",
    declare='Spec(suppress=[{"rule": "mode", "reason": "Monte Carlo dropout"}])',
    holds=(Witness(0, (0,), "all in train mode"),),
    violates=(Witness(1, (0,), "one in eval mode"),),
)
