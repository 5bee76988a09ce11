"""RUN-29: losses whose graph is put together wrongly: classes normalised over another dimension than theirs, similarities of a
batch to itself of which the diagonal stays, ratios of a number to itself.

After the backward the nodes have let go of their numbers, not of their dimensions and shapes.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from karat.invariants.run.rule import Severity
from karat.invariants.run.run29_softmax import RULE
from karat.invariants.runtime.preflight.trees import leaves
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.graph import nodes
from karat.invariants.runtime.watching.loop import Call, Loop

MOST_NODES = 2000
MOST_LOSSES = 4
LEAST = 4
"""Numbers of a ratio, at least."""
OF_CLASSES = ("NllLossBackward", "NllLoss2DBackward")
RATIO = (
    "the ratio that the loss clips is 1 throughout, again on the batch of the step before: what it is divided by is computed "
    "anew, by the weights of now. Keep the log-probabilities of when the batch was drawn"
)
DIAGONAL = (
    "a cross-entropy takes the products of a batch with itself, and nothing masks their diagonal: each sample is its own "
    "nearest, and the loss has a floor"
)


class LossShapes(Check):
    rules = (RULE,)
    interval = "first steps"
    spaced = True

    def __init__(self) -> None:
        self._last: Any = None

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if not loop.dense(moment.step) or loop.tallies[RULE.id].violations:
            loop.off(self)
            return
        young = [o for generation in (0, 1) for o in gc.get_objects(generation) if type(o) is Tensor]
        losses = [t for t in young if t.numel() == 1 and t.grad_fn is not None][-MOST_LOSSES:]
        before, self._last = self._last, None if loop.call is None else mark(loop.call)
        same = before is not None and before == self._last
        for loss in losses:
            found = misshapen(loss, loop.names) or (RATIO if same and one_ratio(loss, young) else "")
            if found:
                loop.judge(
                    RULE, moment.step, RULE.margin(1.0, 0.0),
                    partial(dict, message=found, severity=Severity.WARN, evidence="in the graph of the loss"),
                )  # fmt: skip
                return

    def drop(self) -> None:
        self._last = None


def mark(call: Call) -> Any:
    """What tells a batch: shapes and sums of its tensors; None where there are none."""
    tensors = [t for _, t in leaves((call[1], call[2])) if not t.is_complex()][:2]
    return tuple((tuple(t.shape), float(t.detach().double().sum())) for t in tensors) or None


def misshapen(loss: Tensor, names: Mapping[int, str]) -> str:
    """What is wrong with the shape of a loss of some of the parameters named; empty where nothing is."""
    found, own = "", False
    for kind, node in nodes(loss, MOST_NODES):
        if kind == "AccumulateGrad":
            own = own or id(node.variable) in names
        elif kind.startswith(OF_CLASSES) and not found:
            found = _of_classes(node)
        if own and found:
            return found
    return ""


def _of_classes(node: Any) -> str:
    """Of a loss over classes: where they are, and over what they were normalised."""
    below = _below(node)
    if below is None:
        return ""
    shaped = 0
    while type(below).__name__.startswith(("ViewBackward", "UnsafeViewBackward")):
        shape, below = _shape(below), _below(below)
        if below is None or len(shape) != 2 or shaped or _shape(below)[-1:] != shape[-1:]:
            return ""
        shaped += 1
    if not type(below).__name__.startswith("LogSoftmaxBackward"):
        return ""
    shape = _shape(below)
    if len(shape) < 2:
        return ""
    dim = _signed(below._saved_dim) % len(shape)
    meant = len(shape) - 1 if shaped else 1
    if dim != meant and shape[dim] != shape[meant]:
        over = "over the batch" if dim == 0 else f"over dimension {dim}"
        return (
            f"log_softmax is taken {over}, of {shape[dim]}, and the loss takes the classes in dimension {meant}, of "
            f"{shape[meant]}: what it is given are no log-probabilities of classes"
        )
    return DIAGONAL if dim == meant and _with_itself(_below(below)) else ""


def _with_itself(node: Any) -> bool:
    """Whether scores are the products of rows with themselves, at most divided by a number."""
    while type(node).__name__.startswith("DivBackward") and len([b for b, _ in node.next_functions if b]) == 1:
        node = _below(node)
    if not type(node).__name__.startswith("MmBackward"):
        return False
    (first, _), (second, _) = node.next_functions
    if first is None or second is None or not type(second).__name__.startswith(("TBackward", "Transpose", "Permute")):
        return False
    return bool(_below(second) is first)


def one_ratio(loss: Tensor, young: list[Tensor]) -> bool:
    """Whether a ratio that a loss clips, of a number with a graph to one without, is exactly 1 throughout."""
    clipped = {
        id(below) for kind, node in nodes(loss, MOST_NODES) if kind.startswith("ClampBackward")
        and (below := _below(node)) is not None and type(below).__name__.startswith("ExpBackward")
    }  # fmt: skip
    for tensor in young if clipped else ():
        if id(tensor.grad_fn) not in clipped or tensor.numel() < LEAST:
            continue
        apart = _below(tensor.grad_fn)
        if type(apart).__name__.startswith("SubBackward") and len([b for b, _ in apart.next_functions if b]) == 1:
            return bool((tensor.detach() == 1).all())
    return False


def _below(node: Any) -> Any:
    return node.next_functions[0][0] if node.next_functions else None


def _shape(node: Any) -> tuple[int, ...]:
    held = getattr(node, "_input_metadata", None)
    return tuple(held[0].shape) if held else ()


def _signed(dim: int) -> int:
    return dim - (1 << 64) if dim >= 1 << 63 else dim
