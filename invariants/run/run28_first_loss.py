"""RUN-28 first-loss: the first cross-entropy is near ln(classes)."""

from __future__ import annotations

import math

from karat.invariants.run.rule import Form, Rule, Severity, Witness

FAR, MORE = 2.0, 0.5
"""Times ln(classes), and nats, that an untrained model may be above guessing evenly: the logits of usual starts are small."""

RULE = Rule(
    id="RUN-28",
    slug="first-loss",
    severity=Severity.FAIL,
    statement="the first cross-entropy is at most twice that of guessing evenly, ln(classes), and a half",
    why="logits that start too large spend the first steps on shrinking; targets of other classes never fit",
    quantity="first cross-entropy",
    unit="nats",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight", "audit"),
    when="before the first step, at the first step; the first row of a log",
    limits=(
        "FAIL only with Spec(classes=…) and without Spec(pretrained=True)",
        "losses other than cross-entropy of class indices",
        "a low first loss is said only where classes are declared",
        "a log whose first row comes late: there it is a WARN",
    ),
    source="https://karpathy.github.io/2019/04/25/recipe/",
    example="head.weight.data.normal_()  # width 768: logits of size 28",
    mended="nn.init.normal_(head.weight, std=0.02)",
    declare="Spec(classes=50257), Spec(pretrained=True)",
    holds=(Witness(10.8, (22.1,), "ln 50257"),),
    violates=(Witness(90.0, (22.1,), "eight times as much"),),
)


def most(classes: int) -> float:
    """The largest plausible first cross-entropy of an untrained model, in nats."""
    return FAR * math.log(classes) + MORE
