"""RUN-40 padding: padding does not count."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-40",
    slug="padding",
    severity=Severity.FAIL,
    statement="positions of padding do not count in the loss",
    why="of short sequences most positions are padding: the model learns to predict it, and the loss looks good",
    quantity="positions of padding that count",
    unit="positions",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=LOOKS,
    limits=(
        "FAIL with Spec(padding=…); undeclared only where a token fills the ends of sequences and stands nowhere else",
        "positions whose input and target are both padding",
        "the mask of an attention is compared where the token of padding is known, and told as WARN where it leaves out all else",
        "of attention only that it looks at padding alone, in the first steps, where an embedding has a padding_idx, as WARN",
    ),
    source="https://github.com/lukas-blecher/LaTeX-OCR/issues/305",
    example="loss = F.cross_entropy(logits, targets)",
    mended="loss = F.cross_entropy(logits, targets, ignore_index=pad)",
    declare="Spec(padding=0)",
    holds=(Witness(0, (0,), "none counts"),),
    violates=(Witness(500, (0,), "most do"),),
)
