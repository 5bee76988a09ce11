"""RUN-29: losses that are given what they do not take, read off the graph of the loss.

The gradient at the outputs tells what a loss is only where it is that alone. The graph of the loss tells it of sums of losses
too; as the loop keeps its loss in a variable, it is among the youngest objects when the step is taken.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run29_softmax import RULE
from karat.invariants.runtime.watching.advantage import SAID as ADVANTAGE
from karat.invariants.runtime.watching.advantage import undetached
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import bare, nodes
from karat.invariants.runtime.watching.loop import Loop

MOST_NODES = 2000
MOST_LOSSES = 4
ENOUGH = 2
"""Steps in which some loss was read, after which none is any more."""
KL = "kl_div is given probabilities where it takes their logarithms: it is no divergence, and has no lower end at the targets"
TWICE = "a part of the loss takes the softmax of what is a softmax already. Give it the logits"
BINARY = "a part of the loss takes the sigmoid of what is a sigmoid already. Give it the logits"


class LossGraph(Check):
    rules = (RULE,)
    interval = "first steps"
    spaced = True

    def __init__(self) -> None:
        self._read = 0

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if self._read >= ENOUGH:
            loop.off(self)
            return
        if not loop.dense(moment.step):
            return
        losses = _losses()
        for loss in losses:
            found = mistaken(loss, loop.names)
            if found and not loop.tallies[RULE.id].violations:
                loop.judge(
                    RULE, moment.step, RULE.margin(1.0, 0.0),
                    partial(dict, message=found, severity=Severity.WARN, evidence="in the graph of the loss"),
                )  # fmt: skip
        self._read += bool(losses)


def _losses() -> list[Tensor]:
    """Tensors of one number with a graph, among the objects that were made last."""
    young = [o for generation in (0, 1) for o in gc.get_objects(generation) if type(o) is Tensor]
    return [t for t in young if t.numel() == 1 and t.grad_fn is not None][-MOST_LOSSES:]


def mistaken(loss: Tensor, names: Mapping[int, str]) -> str:
    """What a loss of some of the parameters named is given that it does not take; empty where nothing is."""
    found, own = "", False
    every = list(nodes(loss, MOST_NODES))
    if undetached(every):
        found = ADVANTAGE
    for kind, node in every:
        below = node.next_functions
        if kind == "AccumulateGrad":
            own = own or id(node.variable) in names
        elif kind.startswith("LogSoftmaxBackward") and _given(below, "SoftmaxBackward"):
            found = found or TWICE
        elif kind.startswith("BinaryCrossEntropyWithLogitsBackward") and _given(below, "SigmoidBackward"):
            found = found or BINARY
        elif kind.startswith(("SumBackward", "MeanBackward")) and _of_probabilities(below[0][0]):
            found = found or KL
    return found if own else ""


def _of_probabilities(node: Any) -> bool:
    """c - t p, element by element, of a softmax p and of what has no gradient: what kl_div makes of probabilities."""
    if not type(node).__name__.startswith("SubBackward") or len(node.next_functions) != 2:
        return False
    (constant, _), (product, _) = node.next_functions
    if constant is not None or not type(product).__name__.startswith("MulBackward"):
        return False
    factors = [below for below, _ in product.next_functions if below is not None]
    return len(factors) == 1 and type(bare(factors[0])).__name__.startswith("SoftmaxBackward")


def _given(below: Any, kind: str) -> bool:
    return bool(below) and below[0][0] is not None and type(bare(below[0][0])).__name__.startswith(kind)
