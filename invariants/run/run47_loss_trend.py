"""RUN-47 loss-trend: no window of losses rises above an earlier one."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-47",
    slug="loss-trend",
    severity=Severity.WARN,
    statement="no window of the logged loss rises above an earlier one by more than its noise (watch: and above the first)",
    why="a loss that climbs for a window has left the descent that INV-1 proves of small enough rates",
    quantity="INV-1's margin of two windows",
    unit="loss",
    form=Form.AT_LEAST,
    seen_by=("watch", "audit"),
    when="windows of logged losses",
    limits=(
        "statistical: rises below the noise of two windows are not seen",
        "in watch a rise that stays below where the run started",
        "curricula and changes of data may raise a loss rightly",
        "it judges nothing without logged losses",
    ),
    source="https://arxiv.org/abs/2304.09871",
    example="optimizer = SGD(model.parameters(), lr=10.0)",
    mended="optimizer = SGD(model.parameters(), lr=0.1)",
    declare="guards.log(loss=loss) feeds it",
    holds=(Witness(0.1, (0.0,), "within the noise"),),
    violates=(Witness(-0.1, (0.0,), "a rise beyond it"),),
)
