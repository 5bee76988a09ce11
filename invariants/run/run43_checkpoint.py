"""RUN-43 checkpoint: a checkpoint is what it says: its weights, its step, its loss."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-43",
    slug="checkpoint",
    severity=Severity.FAIL,
    statement="a checkpoint holds the weights of the step and the loss that it records, and loading it loads them",
    why="weights kept by reference are the last ones when the best are written, and strict=False loads nothing in silence",
    quantity="ways in which the checkpoint is not what it says",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="when guards.checkpoint(state) is called, and when the model loads a state while it is watched",
    limits=(
        "recorded losses are compared with evaluations under names such as val_loss that were logged; that of the last batch "
        "is WARN where the same weights were evaluated, and so is a number that nobody logged where no training loss is logged",
        "differences outside a sample of 64 numbers of each parameter",
        "weights of an older step, when they are copies, are taken for what they say",
    ),
    source="https://github.com/WenjieDu/PyPOTS/issues/667",
    example='best = {"model": model.state_dict(), "loss": loss}  # a reference: it goes on training',
    mended='best = {"model": copy.deepcopy(model.state_dict()), "loss": loss}',
    declare='guards.checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, loss=loss, step=step)',
    holds=(Witness(0, (0,), "the weights of now, the loss of now"),),
    violates=(Witness(1, (0,), "the loss of the evaluation before"),),
)
