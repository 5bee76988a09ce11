"""RUN-23 causality: no output depends on a later input."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-23",
    slug="causality",
    severity=Severity.FAIL,
    statement="no output that the loss counts depends on an input that comes after its position",
    why="a model that sees the next token learns to copy it: the loss falls, and nothing can be generated",
    quantity="largest change of outputs up to t when inputs after t change",
    unit="of the output",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step, steps 64 and K, then after twice as many; soon after the forward is seen to "
    "change",
    limits=(
        "it looks at three positions of one batch, whose axes are (batch, time, …)",
        "a change is seen in attributes of modules, arguments, buffers, or the operations of the graph, not in numbers",
        "where it is not declared, only when the targets are the inputs shifted by one",
    ),
    source="https://github.com/huggingface/transformers/issues/48745",
    example="y = F.scaled_dot_product_attention(q, k, v)",
    mended="y = F.scaled_dot_product_attention(q, k, v, is_causal=True)",
    declare="Spec(causal=True) demands it, Spec(causal=False) turns it off",
    holds=(Witness(0.0, (1e-5,), "the same bits"),),
    violates=(Witness(0.3, (1e-5,), "the next token is seen"),),
)
