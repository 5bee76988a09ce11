"""RUN-49 reduction: a mean over the rows that count."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-49",
    slug="reduction",
    severity=Severity.WARN,
    statement="the weights of the rows in the loss sum to one: a mean over those that count",
    why="a sum grows with the batch, a mean over ignored rows shrinks with them, a mean of means weighs tokens unequally",
    quantity="how far the sum of the weights is from one",
    unit="of the loss",
    form=Form.AGREES,
    seen_by=("watch",),
    when="first steps, every K",
    limits=(
        "a mean of means of batches padded to other lengths is told of four or more accumulated ones, or as many as declared",
        "losses other than a cross-entropy of class indices",
        "a term of the loss with a factor of its own is left alone",
    ),
    source="https://github.com/huggingface/transformers/pull/34191",
    example='loss = (F.cross_entropy(x, y, reduction="none") * mask).mean()',
    mended='loss = (F.cross_entropy(x, y, reduction="none") * mask).sum() / mask.sum()',
    declare='Spec(suppress=[{"rule": "reduction", "reason": "summed on purpose"}])',
    holds=(Witness(1.0, (1.0, 0.01), "a mean"),),
    violates=(Witness(32.0, (1.0, 0.01), "a sum over 32 rows"),),
)
