"""In the graph of a loss: log-probabilities of chosen actions, weighted by what a critic says with its graph.

The advantage is a number that the policy is weighted by. Where it has its graph, the loss of the policy moves the critic too,
away from the returns that the critic's own loss draws it to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from karat.invariants.runtime.watching.graph import bare

REGRESSIONS = ("MseLoss", "SmoothL1Loss", "HuberLoss")
NEAR = 4
"""Nodes between a factor and the choice of an action's log-probability."""
SAID = (
    "the log-probabilities of actions are weighted by an advantage that has its graph: the policy's loss moves the critic, away "
    "from the returns. Detach the advantage"
)


def undetached(nodes: Iterable[tuple[str, Any]]) -> bool:
    """Whether a product of log-probabilities and of a difference is there, and the loss regresses what is subtracted, too."""
    values: set[Any] = set()
    differences: list[Any] = []
    for kind, node in nodes:
        name = kind.partition("Backward")[0]
        if name in REGRESSIONS:
            values |= {bare(below) for below, _ in node.next_functions if below is not None}
        elif name == "Pow":
            values |= set(subtracted(node.next_functions[0][0]))
        elif name == "Mul" and len(node.next_functions) == 2:
            factors = [below for below, _ in node.next_functions]
            if None in factors:
                continue
            for factor, other in (factors, factors[::-1]):
                if chosen(other) and not chosen(factor):
                    differences.append(factor)
    return any(value in values for difference in differences for value in subtracted(difference))


def subtracted(node: Any) -> list[Any]:
    """What a difference is made of, of all that has a graph; nothing where it is none."""
    node = bare(node)
    if node is None or not type(node).__name__.startswith(("SubBackward", "RsubBackward")):
        return []
    return [bare(below) for below, _ in node.next_functions if below is not None]


def chosen(node: Any, depth: int = NEAR) -> bool:
    """Whether a choice by an index lies next to a node."""
    node = bare(node)
    if node is None:
        return False
    kind = type(node).__name__
    if kind.startswith("GatherBackward"):
        return True
    near = kind.startswith(("ExpBackward", "SubBackward", "NegBackward", "MulBackward"))
    return near and depth > 0 and any(chosen(below, depth - 1) for below, _ in node.next_functions)
