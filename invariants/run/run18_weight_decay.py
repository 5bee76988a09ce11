"""RUN-18 weight-decay: what is to decay does, what is not does not."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-18",
    slug="weight-decay",
    severity=Severity.FAIL,
    statement="each parameter declared to decay is in a group with weight decay, each declared not to is in one without",
    why="a list of names that was another model's matches nothing: norms and biases decay towards zero, or nothing decays",
    quantity="parameters whose group has another weight decay than declared",
    unit="parameters",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=f"before the first step, every K, and when a group changes, seen at {TURNS}",
    limits=(
        "without a declaration it judges only that no weight decay is negative, and as WARN that of one optimizer's groups those "
        "with the biases and norms do not decay in place of those with the matrices",
        "optimizers that do not keep weight_decay in their groups",
        "decay that the loop applies itself",
        "of what a step takes off the weights, only 2% or more, of all matrices alike, in the first steps, as WARN",
    ),
    source="https://github.com/deepspeedai/DeepSpeedExamples/pull/755",
    example='no_decay = ["bias", "LayerNorm.weight"]  # here the norms are called layer_norm',
    mended='no_decay = ["bias", "norm.weight"]',
    declare='Spec(decay=("*.weight",), no_decay=("*.bias", "norm*"))',
    holds=(Witness(0, (0,), "all as declared"),),
    violates=(Witness(3, (0,), "three norms decay"),),
)
