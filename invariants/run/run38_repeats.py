"""RUN-38 repeats: the data goes on: no batch comes again and again, no epoch in the order of the one before."""

from __future__ import annotations

from karat.invariants.run.cadence import APART, SETTLED, WIDELY
from karat.invariants.run.rule import Form, Rule, Severity, Witness

MOST_TIMES = 2
"""Times in a row that a batch may come: one that was loaded anew comes a third time only by mistake."""
LEAST_PERIOD, LONG_ENOUGH = 5, 8
"""The shortest epoch that is told from a curriculum, in batches, and how many of it must come again in the same order."""

STUCK = 8
"""Steps after which one batch that stays, after many that each came once, is told without knowing where it comes from."""

RULE = Rule(
    id="RUN-38",
    slug="repeats",
    severity=Severity.WARN,
    statement="no batch that is loaded anew comes three times in a row, and no shuffled epoch in the order of the one before",
    why="a loader that is begun again at each step shows the model one batch, workers with equal seeds show each twice",
    quantity="times in a row that a batch came, or batches in a row that came in the order of the epoch before",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=f"every step, from step {SETTLED} on every {APART}th, {WIDELY}, and every one while a batch "
    "comes again; on 256 numbers of the first input",
    limits=(
        "a generator that is seeded at each step is seen where dropout draws from it, in the first steps",
        "the first forward of each step; of several, the other batches of a step are not looked at",
        "rows that repeat in other batches, and augmentation that repeats on other rows",
        "a tensor that is kept and trained on again is taken as meant; epochs of more than 16,384 batches",
        "from step 64 on: batches that each come twice are met at powers of two and every K, an order that comes again by the "
        "first 64 batches of an epoch, or by an eighth of the others",
        "which loader a batch is from is seen where the iterator is torch's; of several that may be it, all must agree",
    ),
    source="https://github.com/pytorch/pytorch/issues/5059",
    example="for step in range(1000):\n    x, y = next(iter(loader))  # a new iterator: always the first batch",
    mended="iterator = iter(loader)\nfor step in range(1000):\n    x, y = next(iterator)",
    declare='Spec(suppress=[Suppression(rule="repeats", reason="one batch is overfitted on purpose")])',
    holds=(Witness(1, (MOST_TIMES,), "another batch"), Witness(2, (MOST_TIMES,), "the same batch once more")),
    violates=(Witness(3, (MOST_TIMES,), "the same batch for the third time"),),
)
