"""RUN-31 inputs: inputs have an effect."""

from __future__ import annotations

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-31",
    slug="inputs",
    severity=Severity.FAIL,
    statement="every input has an effect, and where the model mixes positions, other positions have one",
    why="an attention over a sequence of length one, or an ignored argument, raises nothing",
    quantity="inputs without effect",
    unit="inputs",
    form=Form.AT_MOST,
    seen_by=("watch", "preflight"),
    when="before the first step; first step, steps 64 and K, then after twice as many; soon after the forward is seen to "
    "change; weights without gradient are asked for their inputs at "
    "step 2; whether all samples are alike: " + LOOKS + "; whether a part of one tensor comes again scaled: in turn",
    limits=(
        "FAIL only where no input at all has an effect",
        "an input that turns the same for all samples of a batch, or the only input 20 times larger or smaller, counts after "
        "three looks at which it was not",
        "data that are changed in place are told where batches are slices of one tensor, not copies, and each column comes back "
        "as a multiple of what it was, and a shift",
        "and where something is added to them in place, at the third slice that comes back so",
        "rows that are copies are told where the first half of a batch of floats is its second half, of a model without dropout, "
        "and where all rows are one, another in each batch; in three batches, from the start",
        "inputs named mask, label, type, position, length or index; labels that act on a loss among the outputs",
        "a weak effect counts as one; of pieces that do not see each other only the halves of a next-token model are compared",
        "models without attention, recurrence or convolution need not mix positions",
    ),
    source="https://github.com/titu1994/LSTM-FCN/issues/11",
    example="y = attention(x.unsqueeze(0))  # (1, batch, width): batch_first=False",
    mended="y = attention(x)",
    declare='Spec(suppress=[{"rule": "inputs", "reason": "…"}])',
    holds=(Witness(0, (0,), "all have an effect"),),
    violates=(Witness(1, (0,), "one has none"),),
)
