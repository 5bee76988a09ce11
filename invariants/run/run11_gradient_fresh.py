"""RUN-11 gradient-fresh: a step applies what was computed since the last one, from nothing, and once."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-11",
    slug="gradient-fresh",
    severity=Severity.FAIL,
    statement="each step applies gradients that were computed since the last step, onto cleared ones, each once",
    why="without zero_grad every step repeats the sum of all gradients so far: the loss falls for a while, then climbs",
    quantity="ways in which the applied gradient is not fresh",
    unit="",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="every step, on a few small parameters of each optimizer",
    limits=(
        "a gradient is seen on up to three small parameters of each optimizer; of others that are not cleared the last small "
        "one, and one after the other, at turns",
        "what another optimizer's turn left is seen where both step in turn, from the second time on, as WARN",
        "the gradient of an evaluation is seen where it is always of the same batch, as WARN",
        "two backward passes through one forward, of nearly the same loss, where steps before had one: WARN; of two losses that "
        "differ they are meant",
        "a gradient that is not finite, for which steps are left out and which is not cleared: WARN, after 64 forwards "
        "or at the end",
        "steps that apply nothing and before which nothing was called, 4 in a row, are WARN",
        "what the turn of another optimizer left and its own backward added to is seen in the first steps, as WARN",
        "that no step is taken any more and gradients add up is seen after some dozens of passes, of one optimizer, as WARN",
        "steps of an optimizer that is given a closure",
        "gradients put into .grad by hand, unless the very same is left there",
    ),
    source="https://stackoverflow.com/questions/60335387",
    example="for x, y in data:\n    loss_fn(model(x), y).backward()\n    optimizer.step()  # zero_grad() is missing",
    mended="for x, y in data:\n    optimizer.zero_grad()\n    loss_fn(model(x), y).backward()\n    optimizer.step()",
    declare='Spec(suppress=[Suppression(rule="gradient-fresh", reason="…")])',
    holds=(Witness(0, (0,), "cleared, then one backward"),),
    violates=(Witness(1, (0,), "not cleared"),),
)
