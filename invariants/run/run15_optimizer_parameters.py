"""RUN-15 optimizer-parameters: the optimizers hold the model's trainable parameters, these very objects, each once."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-15",
    slug="optimizer-parameters",
    severity=Severity.FAIL,
    statement="each trainable parameter that gets a gradient is held by an optimizer, as the object it is now, and once",
    why="a head put in after the optimizer was built never moves: the optimizer goes on stepping the one that was",
    quantity="parameters that are missing, stale, frozen or held twice",
    unit="parameters",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when=f"before the first step; {TURNS}, by identity; of models with many modules a part in turn",
    limits=(
        "parameters outside the model that no attribute of a module leads to",
        "a missing parameter is said one step later, once it is seen that nobody moved it",
        "optimizers of other libraries that are no torch.optim.Optimizer, until they moved their parameters",
    ),
    source="https://github.com/pytorch/pytorch/issues/14467",
    example="optimizer = AdamW(model.parameters())\nmodel.head = nn.Linear(512, 10)",
    mended="model.head = nn.Linear(512, 10)\noptimizer = AdamW(model.parameters())",
    declare='Spec(frozen=["backbone"]) or requires_grad_(False) for what is not to be trained',
    holds=(Witness(0, (0,), "all are held"),),
    violates=(Witness(1, (0,), "one is missing"),),
)
