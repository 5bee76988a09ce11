"""RUN-44 data-position: a resumed run goes on in its data where it stopped."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-44",
    slug="data-position",
    severity=Severity.FAIL,
    statement="after a resume the data goes on where the checkpoint left it, not before",
    why="a loader that starts at its beginning shows some data twice and the rest of the epoch never",
    quantity="samples consumed since the start of the run",
    unit="samples",
    form=Form.AT_LEAST,
    seen_by=("watch", "resume_parity"),
    when="at the first guards.log(position=…) after guards.checkpoint of what was read, and in resume_parity",
    limits=(
        "watch needs the position in the checkpoint and in the log, counted since the start of the run, not of the epoch",
        "data that is skipped",
    ),
    source="https://github.com/huggingface/accelerate/issues/2016",
    example="for x, y in loader:  # from its beginning, in the middle of an epoch\n    train_step(x, y)",
    mended='for x, y in islice(loader, state["batch"], None):\n    train_step(x, y)',
    declare='guards.checkpoint({..., "position": samples_so_far}) and guards.log(position=samples_so_far)',
    holds=(Witness(480, (480,), "where it stopped"), Witness(512, (480,), "one batch on")),
    violates=(Witness(32, (480,), "the first batch again"),),
)
