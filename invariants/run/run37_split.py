"""RUN-37 split: the validation set is not in the training set."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

MOST_EXCESS = 0.01
"""Share of the validation set that may be in the training set beyond what the training set repeats of itself."""

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
        "near copies: other crops, other white space, paraphrases",
        "the first 5 million tokens, and 20,000 samples of each part",
        "leaks through what was fitted on both parts, such as a scaler",
    ),
    source="https://github.com/microsoft/seismic-deeplearning/issues/233",
    example="train, validation = data, data[-1000:]",
    mended="train, validation = data[:-1000], data[-1000:]",
    declare="guards.split(train=train, validation=validation)",
    holds=(Witness(0.0, (MOST_EXCESS,), "disjoint"), Witness(0.01, (MOST_EXCESS,), "one in a hundred")),
    violates=(Witness(1.0, (MOST_EXCESS,), "the validation set is inside the training set"),),
)
