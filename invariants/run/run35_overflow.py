"""RUN-35 overflow: numbers stay away from the ends of their range."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-35",
    slug="overflow",
    severity=Severity.WARN,
    statement="numbers in low precision stay away from both ends of its range",
    why="numbers in float16 end at 65504 and at 6e-8: before NaN come activations near the one end and gradients "
    "below the other",
    quantity="largest number, of the largest that its type can hold; or share of gradients below its normal numbers",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="outputs and inputs of every forward in float16; parameters and gradients in the first steps and every K",
    limits=(
        "activations inside the model; but of terms that are logged before backward, at looks, an infinity in float16 that "
        "nan_to_num or clamp makes a number",
        "large negative outputs, which masks are made of",
    ),
    source="https://github.com/huggingface/transformers/issues/9295",
    example='with torch.autocast("cuda", dtype=torch.float16):\n    loss = model(1e4 * x).sum()\nloss.backward()',
    mended='with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = model(x).sum()',
    declare='Spec(suppress=[Suppression(rule="overflow", reason="…")])',
    holds=(Witness(0.01, (0.125,), "far from the end"),),
    violates=(Witness(0.4, (0.125,), "26000 in float16"),),
)
