"""RUN-21 replicas: replicas agree."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-21",
    slug="replicas",
    severity=Severity.FAIL,
    statement="after each step all replicas of the model have the same parameters",
    why="a replica that misses the mean of the gradients trains alone: the run costs as much and learns from a part "
    "of the data",
    quantity="largest distance between replicas, relative to the weights",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="each step a sample of one parameter, in turn; in the first steps and every K of all (across processes only then)",
    limits=(
        "replicas in other processes are seen only where every process watches: they leave fingerprints in the group's store",
        "sharded models",
        "differences between the samples",
    ),
    source="https://github.com/jingyaogong/minimind/issues/853",
    example="loss = ddp.module(x).sum()  # past the wrapper: gradients are not averaged\nloss.backward()",
    mended="loss = ddp(x).sum()\nloss.backward()",
    declare="watch(model, optimizer, replicas=[other])",
    holds=(Witness(0.0, (1e-06,), "bit for bit"),),
    violates=(Witness(0.02, (1e-06,), "apart by a step"),),
)
