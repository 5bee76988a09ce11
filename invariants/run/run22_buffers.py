"""RUN-22 buffers: buffers stay what they are to be."""

from __future__ import annotations

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-22",
    slug="buffers",
    severity=Severity.FAIL,
    statement="buffers stay finite, and those of frozen modules stay as they are",
    why="freezing by requires_grad does not stop the running statistics of a norm in train mode; "
    "a batch with NaN spoils them for good",
    quantity="buffers that drifted or are not finite",
    unit="buffers",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when=f"{TURNS}, two in turn and those that are to stand; all in the first steps and every K",
    limits=(
        "buffers that were not finite at the start, such as masks of -inf",
        "statistics that are finite and wrong; those that were reset are seen where the norm has a weight",
    ),
    source="https://github.com/pytorch/pytorch/issues/1206",
    example="model.backbone.requires_grad_(False)\nmodel.train()",
    mended="model.backbone.requires_grad_(False)\nmodel.train()\nmodel.backbone.eval()",
    declare='Spec(frozen=("backbone.*",))',
    holds=(Witness(0, (0,), "all are finite and stand"),),
    violates=(Witness(1, (0,), "a running mean is NaN"),),
)
