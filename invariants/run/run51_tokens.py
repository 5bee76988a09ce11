"""RUN-51 tokens: tokens per step are even."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-51",
    slug="tokens",
    severity=Severity.WARN,
    statement="the tokens of a step are the same between any two rows of a log, to 1 % of their median",
    why="batches that shrink or are counted twice change the meaning of every step of the schedule",
    quantity="pairs of rows whose tokens per step are off their median",
    unit="pairs",
    form=Form.AT_MOST,
    seen_by=("audit",),
    when="over the whole log",
    limits=("the last row, which may be short", "batches that grow on purpose"),
    source="https://github.com/huggingface/transformers/issues/34567",
    example="tokens += x.numel() * world_size  # on some rows only",
    mended="tokens += x.numel() * world_size",
    declare="nothing to declare",
    holds=(Witness(0, (0,), "even"),),
    violates=(Witness(1, (0,), "one is off"),),
)
