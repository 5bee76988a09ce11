"""RUN-39 targets: targets are the next tokens."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-39",
    slug="targets",
    severity=Severity.FAIL,
    statement="the targets of a next-token model are its inputs, one position on",
    why="unshifted targets teach to copy; targets shifted in the data and again in the loss teach the token after the next",
    quantity="positions by which the targets are off",
    unit="positions",
    form=Form.WITHIN,
    seen_by=("watch",),
    when=LOOKS,
    limits=(
        "FAIL where the model is declared causal and the targets are its inputs themselves",
        "it looks only where tokens go in and a cross-entropy of class indices comes out, or both are logged",
        "targets in another order than the inputs: where the model answered right before, and by chance in four looks in a row",
        "an autoencoder, whose positions see each other, is not meant",
    ),
    source="https://github.com/huggingface/transformers/issues/47394",
    example="loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())  # labels are shifted already",
    mended="loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())",
    declare="Spec(causal=True), Spec(causal=False)",
    holds=(Witness(0, (0, 0), "the next token"),),
    violates=(Witness(1, (0, 0), "the one after the next"),),
)
