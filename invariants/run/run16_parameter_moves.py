"""RUN-16 parameter-moves: a step moves what has a gradient, and nothing else does."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-16",
    slug="parameter-moves",
    severity=Severity.FAIL,
    statement="a parameter with a gradient and a rate is changed by the optimizer's step, and by nothing else between steps",
    why="an optimizer that does not reach the weights leaves them as they were; batch statistics drift, and the loss moves",
    quantity="looks at which a parameter with a gradient and a rate stood still",
    unit="looks",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when=f"before the first step; first steps and every K: all; else {TURNS} whether up to 32 were written to; one sampled "
    "every 8th",
    limits=(
        "parameters of LBFGS, which stand still once its search has converged",
        "whether a move is the right one",
        "steps with a closure",
        "parameters in shards (FSDP, DeepSpeed ZeRO-3)",
        "preflight takes one step, on one batch: smaller rates later are not seen",
        "that no step is taken at all is a WARN: after 24 backward passes from cleared gradients, and at the end",
        "that something else than the optimizer changed them is a WARN, and only where the loop does not do so from the start, "
        "or again soon; multiplied by a number, or pruned, they are not meant",
        "weights that an evaluation puts in are known where another tensor has the same numbers and they are there still when "
        "training goes on, at the second evaluation; weights drawn anew in the first 128 steps, where a look was within 8",
        "weights that were loaded, evaluated and trained on are a WARN, where no load in the first steps, or without an "
        "evaluation, shows that the loop means it; a loop that goes on from its average on purpose looks the same",
        "copied by hand they are seen on one parameter; written to through .data, only where a step before is looked at in full",
    ),
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/20215",
    example="model.head.requires_grad_(False)\noptimizer = SGD(model.head.parameters(), lr=0.1)  # holds nothing that trains",
    mended="optimizer = SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)",
    declare='Spec(suppress=[Suppression(rule="parameter-moves", where="codes", reason="written by the loop itself")])',
    holds=(
        Witness(0, (1,), "it moved"),
        Witness(1, (1,), "one look may be an optimizer that collects two steps"),
    ),
    violates=(Witness(2, (1,), "twice with a gradient and a rate, not written to"),),
)
