"""RUN-33 precision: updates are not lost in rounding."""

from __future__ import annotations

from karat.invariants.run.cadence import SETTLED, WIDELY
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-33",
    slug="precision",
    severity=Severity.FAIL,
    statement="updates are larger than the spacing of the parameters' numbers, and their type is the declared one",
    why="in bfloat16 a weight of 1 cannot change by less than 1/256: at small rates most updates are rounded away",
    quantity="share of the sampled elements with a gradient that a step left unchanged",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; in the first steps and every K on all parameters, else on one at every 8th step (4th in low "
    f"precision up to step {SETTLED}), {WIDELY}; over three looks; "
    "after a forward or a state_dict() in a shorter type",
    limits=(
        "weights that are rounded by a way through a shorter type are WARN, and seen only where the model is called or saved in "
        "that type",
        "positions that are counted in a type too short for them are WARN, seen where the forward itself calls arange or casts",
        "optimizers that are not torch's own may round stochastically or keep a compensation: of those it is a WARN",
        "while the rate rises or falls away nothing is said",
        "float32 is a WARN at most",
    ),
    source="https://github.com/areal-project/AReaL/issues/1292",
    example="model = model.bfloat16()\noptimizer = AdamW(model.parameters(), lr=1e-5)",
    mended='with torch.autocast("cuda", dtype=torch.bfloat16):  # over float32 weights\n    loss = model(x).sum()',
    declare='Spec(dtype="float32")',
    holds=(Witness(0.3, (0.95,), "a third is lost"),),
    violates=(Witness(0.99, (0.95,), "nearly all is lost"),),
)
