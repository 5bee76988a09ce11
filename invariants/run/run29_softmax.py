"""RUN-29 softmax: losses are given what they take."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-29",
    slug="softmax",
    severity=Severity.FAIL,
    statement="a loss that takes logits is given logits, and a loss that compares pairs is given pairs",
    why="the cross-entropy of probabilities taken for logits cannot fall below ln(C - 1 + e) - 1: "
    "the model trains, slowly and never well",
    quantity="losses fed with what they do not take",
    unit="losses",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when=f"before the first step; {LOOKS}",
    limits=(
        "read off the gradient at the outputs of the model",
        "of a loss that is a sum of several: a softmax or sigmoid just before one that takes logits, and kl_div of a softmax, "
        "read off its graph in the first steps, as WARN, where the loop keeps the loss in a variable until the step; so is an "
        "advantage that is not detached, in a product with gathered log-probabilities, where the same value is regressed",
        "so, too: log_softmax over another dimension than that of the classes, products of a batch with itself whose diagonal is "
        "not masked, and a clipped ratio that is 1 again on the batch of the step before",
    ),
    source="https://github.com/Lightning-Universe/lightning-bolts/issues/654",
    example="loss = F.cross_entropy(model(x).softmax(-1), y)",
    mended="loss = F.cross_entropy(model(x), y)",
    declare='Spec(suppress=[{"rule": "softmax", "reason": "…"}])',
    holds=(Witness(0, (0,), "logits"),),
    violates=(Witness(1, (0,), "probabilities"),),
)
