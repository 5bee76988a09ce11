"""RUN-24 batch-independence: no sample sees another in eval mode."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-24",
    slug="batch-independence",
    severity=Severity.FAIL,
    statement="in eval mode no sample's output depends on another sample of its batch",
    why="an exchanged axis mixes samples: the model trains on its neighbours and is wrong alone",
    quantity="largest change of the other samples' outputs when the first is replaced",
    unit="of the output",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step, steps 64 and K, then after twice as many; soon after the forward is seen to "
    "change",
    limits=(
        "one batch, the first sample replaced",
        "the batch is the first axis of inputs and output",
    ),
    source="https://github.com/om-ai-lab/OmDet/issues/19",
    example="attention = nn.MultiheadAttention(width, heads)  # x is (batch, time, width)",
    mended="attention = nn.MultiheadAttention(width, heads, batch_first=True)",
    declare="Spec(batch_independent=True) makes it a FAIL, Spec(batch_independent=False) turns it off",
    holds=(Witness(0.0, (1e-5,), "the same bits"),),
    violates=(Witness(0.1, (1e-5,), "a sample is seen by another"),),
)
