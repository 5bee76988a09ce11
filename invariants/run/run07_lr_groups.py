"""RUN-7 lr-groups: the schedule moves every parameter group, and keeps the ratios between them."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-7",
    slug="lr-groups",
    severity=Severity.FAIL,
    statement="all parameter groups follow the schedule, in the declared ratios or in those they began with",
    why="a schedule that sets the first group only leaves the others at their first rate; a resumed run may level them",
    quantity="rate of a group over that of the first",
    unit="",
    form=Form.AGREES,
    seen_by=("watch",),
    when="every step at which a rate moves",
    limits=(
        "WARN without declared ratios or schedule",
        "groups at rate 0 are left alone",
        "without ratios only a group that stays while another moves, and groups that are levelled at once, are seen; and one "
        "that joins at the rate the optimizer was made with when the others have come down from it",
    ),
    source="https://github.com/pytorch/pytorch/issues/79888",
    example='optimizer.param_groups[0]["lr"] = rate(step)',
    mended='for group in optimizer.param_groups:\n    group["lr"] = group["ratio"] * rate(step)',
    declare="Spec(group_ratios=(1.0, 10.0))",
    holds=(Witness(10.0, (10.0, 1e-5), "the declared ratio"),),
    violates=(Witness(1.0, (10.0, 1e-5), "levelled"),),
)
