"""RUN-34 straight-through: no gradient is lost in a rounding, a sign or a choice."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-34",
    slug="straight-through",
    severity=Severity.FAIL,
    statement="a parameter whose every path to the outputs is rounded, signed or compared gets a gradient all the same",
    why="the gradient of round, sign and argmax is zero or none: a quantized layer keeps its initial weights, in silence",
    quantity="trainable parameters whose gradient is lost in jumps",
    unit="parameters",
    form=Form.AT_MOST,
    seen_by=("watch",),
    when="in the first steps, and when a gradient turns zero; the kept forward is run again with the parameter moved",
    limits=(
        "a straight-through gradient that is there, but wrong",
        "a parameter that has another path, without rounding, too",
        "it judges nothing with several processes, or where the model is not called as a whole",
    ),
    source="https://arxiv.org/abs/1308.3432",
    example="weight = torch.sign(self.weight)",
    mended="weight = self.weight + (torch.sign(self.weight) - self.weight).detach()",
    declare='Spec(detached=["codes"]) or Spec(frozen=["codes"]) where that is meant',
    holds=(Witness(0, (0,), "each gradient passes"),),
    violates=(Witness(1, (0,), "one is lost"),),
)
