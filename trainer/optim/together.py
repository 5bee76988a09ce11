"""Several optimizers as one: one list of groups, one state, one step; saved and restored as a single optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class Together(Optimizer):
    """Steps its parts one after another. `param_groups` are the parts' own groups and `state` is one table of all.

    The parts share no parameter (torch refuses one that is in two groups). Settings of a group changed here, such as
    its rate, are those of the part.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{"params": list(group["params"])} for group in groups], {})
        self.parts = tuple(parts)
        self._share(groups)

    def _share(self, groups: list[dict[str, Any]]) -> None:
        """Makes `groups` the groups of the whole and of its parts, in order, and one state that of all."""
        self.param_groups = groups
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = groups[first:last], self.state
            first = last

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part; the closure, when given, is evaluated once, before."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer; afterwards the parts share the loaded groups and state."""
        super().load_state_dict(state_dict)
        self._share(self.param_groups)
