"""What a probe asks of the network that it looks at: its calls, edited and read, whoever makes them.

Two give it: `Subject`, which calls the user's loss function on a batch, and a replay of a forward that a watched loop made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from karat.invariants.run.spec import Spec
from karat.invariants.runtime.preflight.trees import Path, leaves


@dataclass(frozen=True)
class Call:
    """The network's first call: arguments, and the main output, which is the one called logits or the largest."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None
    outputs: tuple[Tensor, ...]

    @property
    def inputs(self) -> dict[Path, Tensor]:
        """The tensors among the arguments."""
        return dict(leaves((self.args, self.kwargs)))


class Probed(Protocol):
    """The network under one spec. notes: what one probe found out and another one uses too.

    Known notes: "jittered", the call under noise; "next token", whether the targets are known to be the next inputs;
    "sequence", the path of the input whose shift they are; "counted", the (B, T) positions that the loss counts.
    """

    @property
    def model(self) -> nn.Module:
        """What holds the network."""

    @property
    def network(self) -> nn.Module:
        """The module whose inputs and outputs are probed."""

    @property
    def spec(self) -> Spec:
        """What was declared."""

    @property
    def batch(self) -> Any:
        """What the loop passes around: inputs and, where they are in it, targets."""

    @property
    def notes(self) -> dict[str, Any]:
        """See above."""

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters by name that ask for a gradient and are not declared frozen."""

    def forward(
        self, edits: Mapping[Path, Tensor] | None = None, *, training: bool = False, seed: int = 0,
        watched: Mapping[str, nn.Module] | None = None, seen: Callable[[str, Any, Any], None] | None = None,
    ) -> Call | None:  # fmt: skip
        """The network's call with inputs replaced by path; None when it is not called."""

    def jitter(self) -> None:
        """Noise on every weight, so that nothing rests on a branch that starts at zero."""
