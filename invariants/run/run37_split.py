"""RUN-37 split: the validation set is not in the training set."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

MOST_EXCESS = 0.01
"""Share of the validation set that may be in the training set beyond what the training set repeats of itself."""
MOST_SHARE = 0.1
"""Share of the validation set in the training set from which on a word is said whatever the training set repeats."""

RULE = Rule(
    id="RUN-37",
    slug="split",
    severity=Severity.FAIL,
    statement="no more of the validation set is in the training set than the training set repeats of itself, plus 1 %",
    why="a loss on what was trained on falls as long as the model learns by heart, and every comparison rests on it",
    quantity="share of the validation set in the training set, beyond the training set's own repeats",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="when guards.split(…) is called",
    limits=(
        "where the training set repeats itself as much, as windows that overlap do, it is a WARN, from a tenth on",
        "whole numbers in one row, most of them different, are taken for ids: a WARN",
        "near copies: other crops, other white space, paraphrases",
        "what comes after the first 5 million tokens, or 20,000 samples, of each part",
        "leaks through what was fitted on both parts, such as a scaler",
    ),
    source="https://github.com/microsoft/seismic-deeplearning/issues/233",
    example="train, validation = data, data[-1000:]",
    mended="train, validation = data[:-1000], data[-1000:]",
    declare="guards.split(train=train, validation=validation)",
    holds=(Witness(0.0, (MOST_EXCESS,), "disjoint"), Witness(0.01, (MOST_EXCESS,), "one in a hundred")),
    violates=(Witness(1.0, (MOST_EXCESS,), "the validation set is inside the training set"),),
)
