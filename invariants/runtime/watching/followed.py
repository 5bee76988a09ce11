"""What is known of the parameters of one optimizer from one step to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from karat.invariants.runtime.watching.loop import Held
from karat.invariants.runtime.watching.sampling import fit, run_of, spread

FEW = 16
"""Elements of a parameter that are kept from one step to the next: neighbours, for they are copied every step."""


@dataclass
class Followed:
    """The parameters of one optimizer that samples can be taken of, and what is known of each between steps."""

    held: list[Held]
    groups: list[tuple[int, int]]
    places: list[int] = field(default_factory=list)
    views: dict[int, Tensor] = field(default_factory=dict)
    few: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[range, list[Tensor]] = field(default_factory=dict)
    """A run of `places` -> the parameters there."""
    apart: int = 1
    """Steps between two samples."""
    counters: bool = True
    """Whether the optimizer writes in a way that counters see."""
    wrote: bool = False
    looked: range = field(default_factory=lambda: range(0))
    before: list[int] = field(default_factory=list)
    turned: tuple[int, range, list[int], list[int]] | None = None
    """The last step that was looked at: its number, what was looked at, the counters after it, and what it added to them."""
    left: tuple[range, list[int], Tensor | None, range] | None = None
    usual: set[int] = field(default_factory=set)
    """Those that the loop itself writes to between steps, from its first steps on."""
    still: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Place -> first step at which it stood still, and how many looks in a row."""
    urgent: dict[int, int] = field(default_factory=dict)
    """Place -> first step at which its counter stood still: it is sampled in the next step."""
    large: dict[int, tuple[int, int]] = field(default_factory=dict)
    zero: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for place, held in enumerate(self.held):
            if fit(held.parameter):
                self.places.append(place)
                self.renew(place)

    def renew(self, place: int) -> None:
        self.views[place] = spread(self.held[place].parameter)
        self.few[place] = run_of(self.held[place].parameter, FEW)

    def parameters(self, looked: range) -> list[Tensor]:
        """Those of a run of `places`."""
        found = self.parts.get(looked)
        if found is None:
            found = self.parts[looked] = [self.held[self.places[n]].parameter for n in looked]
        return found

    def view(self, place: int) -> Tensor | None:
        """The sample of a parameter, wherever its numbers are now; None where none can be taken any more."""
        parameter, view = self.held[place].parameter, self.views[place]
        if parameter.data_ptr() != view.data_ptr() or parameter.device != view.device:
            if not fit(parameter):
                return None
            self.renew(place)
        return self.views[place]
