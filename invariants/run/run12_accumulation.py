"""RUN-12 accumulation: a step applies the gradients of as many batches as declared."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-12",
    slug="accumulation",
    severity=Severity.FAIL,
    statement="each step accumulates the declared number of batches; only the last of an epoch may have fewer",
    why="a group of one, or of those left over from the last epoch, has another weight than all others",
    quantity="batches that a step accumulates",
    unit="batches",
    form=Form.WITHIN,
    seen_by=("watch",),
    when="every step",
    limits=(
        "without a declared count only gradients that are cleared before they are applied are seen, as WARN, those of an "
        "epoch's last group at the second epoch, batches left over that go into the next epoch's first step, "
        "and four cross-entropies or more, alike, that are added up undivided",
        "that other losses are undivided is WARN, where guards.log(loss=...) is given each as a tensor before backward, or "
        "numbers of a mean square error; four losses that are meant to be added up look the same",
        "a model called several times for a batch counts so often at every step",
        "the first group is judged at the second step",
    ),
    source="https://github.com/timoschick/pet/issues/36",
    example="if index % 4 == 0:\n    optimizer.step()",
    mended="if (index + 1) % 4 == 0:\n    optimizer.step()",
    declare="Spec(accumulation=4)",
    holds=(Witness(4, (4, 4), "a full group"), Witness(2, (1, 4), "the rest of an epoch")),
    violates=(Witness(6, (4, 4), "the rest of the last epoch joined"), Witness(1, (4, 4), "a group of one")),
)
