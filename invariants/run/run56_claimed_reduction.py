"""RUN-56 claimed-reduction: a loss reduction that is claimed of a run follows from its log."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

TOLERANCE = 0.1
"""Percentage points: claims are written with one decimal or none."""

RULE = Rule(
    id="RUN-56",
    slug="claimed-reduction",
    severity=Severity.FAIL,
    statement="the percentage by which the loss is claimed to have fallen is that of the log, and is not owed to a bad start",
    why="from a first loss far above a uniform guess nearly any run falls by 95 %: it only unlearns its initialisation",
    quantity="share by which the logged loss fell, from its first row to its last",
    unit="%",
    form=Form.AGREES,
    seen_by=("audit",),
    when="over the whole log",
    limits=(
        "it judges nothing without a claim",
        "that the start is bad is a WARN: from ln(classes), the loss of a uniform guess, it fell by less than claimed",
        "the first and the last row alone, as noisy as they are",
    ),
    source="https://karpathy.github.io/2019/04/25/recipe/",
    example='print(f"loss reduction: {100 * (1 - losses[-1] / losses[0]):.1f} %")  # losses[0] is 173, ln 4096 is 8.3',
    mended='print(f"loss reduction: {100 * (1 - losses[-1] / math.log(classes)):.1f} %")',
    declare="trainer audit LOG --reduction 55 --vocab 4096",
    holds=(Witness(50.04, (50.0, TOLERANCE), "as claimed, rounded"),),
    violates=(
        Witness(50.0, (75.0, TOLERANCE), "half, where three quarters are claimed"),
        Witness(54.9, (97.8, TOLERANCE), "what is left of the claim when a uniform guess is the start"),
    ),
)
