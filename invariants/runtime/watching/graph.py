"""The graph of autograd below a tensor: which leaves it reaches, and through what; nothing is computed or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MOST_NODES = 50_000
"""Nodes that one walk visits, about 1 us each."""
STEPS = ("Round", "Sign", "Floor", "Ceil", "Trunc", "Bernoulli")
"""Operations whose backward is zero throughout, for they are constant between jumps; as autograd calls their nodes."""
SAME = (
    "View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Slice", "Clone", "Alias", "ToCopy",
    "Index", "IndexSelect", "Movedim", "Expand", "Contiguous", "Select",
)  # fmt: skip
"""Nodes that give the numbers of a tensor in another shape."""
HIDING = ("CheckpointFunction", "CompiledFunction", "DDPSink")
"""Nodes whose backward reaches parameters that are not among their inputs."""


@dataclass(frozen=True)
class Walk:
    """What a walk found. leaves: by id. kinds: the names of the nodes' classes. whole: nothing was left unvisited."""

    leaves: dict[int, Tensor]
    kinds: frozenset[str]
    whole: bool

    @property
    def certain(self) -> bool:
        """Whether a leaf that is not among `leaves` is not reached: no limit was met and no node hides any."""
        return self.whole and not any(kind.startswith(HIDING) for kind in self.kinds)

    @property
    def steps(self) -> str:
        """The operations without a gradient that it went through, as torch calls them."""
        return " or ".join(sorted({kind.partition("Backward")[0].lower() for kind in self.kinds if is_step(kind)}))


def walk(tensors: Iterable[Tensor], avoid: Callable[[str], bool] = lambda kind: False) -> Walk:
    """All that is reached from tensors, not going through the nodes that are to be avoided."""
    leaves = {id(t): t for t in tensors if t.grad_fn is None and t.requires_grad}
    waiting: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(waiting)
    kinds: set[str] = set()
    while waiting and len(seen) <= MOST_NODES:
        node = waiting.pop()
        kind = type(node).__name__
        if avoid(kind):
            continue
        kinds.add(kind)
        variable = getattr(node, "variable", None) if kind == "AccumulateGrad" else None
        if variable is not None:
            leaves[id(variable)] = variable
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return Walk(leaves, frozenset(kinds), not waiting)


def nodes(tensor: Tensor, most: int = MOST_NODES) -> Iterator[tuple[str, Any]]:
    """The nodes of the graph of a tensor, each once, with the names of their classes; of one that is too large, the first."""
    waiting: list[Any] = [] if tensor.grad_fn is None else [tensor.grad_fn]
    seen = set(waiting)
    while waiting and len(seen) <= most:
        node = waiting.pop()
        yield type(node).__name__, node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def is_step(kind: str) -> bool:
    """Whether a node is that of an operation whose gradient is zero throughout."""
    return kind.startswith(STEPS) and kind.removesuffix("0").removesuffix("1").removesuffix("Backward") in STEPS


def contains(tensor: Tensor, node: Any) -> bool | None:
    """Whether a node lies in the graph of a tensor; None where the walk met its limit."""
    waiting: list[Any] = [tensor.grad_fn]
    seen = {tensor.grad_fn}
    while waiting and len(seen) <= MOST_NODES:
        current = waiting.pop()
        if current is node:
            return True
        for below, _ in getattr(current, "next_functions", ()):
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return None if waiting else False


def bare(node: Any) -> Any:
    """The node under those that only shape."""
    while node is not None and type(node).__name__.partition("Backward")[0] in SAME and node.next_functions:
        if node.next_functions[0][0] is None:
            return node
        node = node.next_functions[0][0]
    return node
