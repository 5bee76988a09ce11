"""What the guards cost a loop: seconds by check, the first steps apart from all later ones.

In most steps only the whole is timed. Each check is timed in the steps that look at more than others, all of them, and in
one of TIMED others, which stands for those between.
"""

from __future__ import annotations

from karat.invariants.runtime.watching.loop import DENSE

TIMED = 31
"""Of no common factor with the turns that checks take, so that each kind of step is met."""
FRAME = "frame"
"""What is not inside any check: the hooks themselves and the transfer."""


class Cost:
    """start: seconds in the first steps; whole: in all later ones. timed: whether this step is timed check by check."""

    def __init__(self) -> None:
        self.start = self.whole = 0.0
        self.timed = True
        self._first = True
        self._rare = False
        self._steps = self._plain = self._sampled = 0
        self._of_rare: dict[str, float] = {}
        self._of_plain: dict[str, float] = {}

    def turn(self, taken: int, rare: bool) -> None:
        """A step begins, after so many. rare: it looks at more than most."""
        if not self._first:
            self._steps += 1
            self._plain += not self._rare
            self._sampled += self.timed and not self._rare
        self._first, self._rare = taken < DENSE, rare
        self.timed = rare or taken % TIMED == TIMED // 2

    def add(self, seconds: float) -> None:
        """Takes what one hook took."""
        if self._first:
            self.start += seconds
        else:
            self.whole += seconds

    def take(self, name: str, seconds: float) -> None:
        """Takes what one check took in a step that is timed."""
        if not self._first:
            table = self._of_rare if self._rare else self._of_plain
            table[name] = table.get(name, 0.0) + seconds

    def of_a_step(self) -> dict[str, float]:
        """Check -> microseconds of a step after the first ones, the most expensive first; empty where none was taken."""
        if not self._steps:
            return {}
        weight = self._plain / self._sampled if self._sampled else 0.0
        names = {**self._of_plain, **self._of_rare}
        sums = {n: self._of_rare.get(n, 0.0) + weight * self._of_plain.get(n, 0.0) for n in names}
        sums[FRAME] = max(0.0, self.whole - sum(sums.values()))
        return {n: 1e6 * s / self._steps for n, s in sorted(sums.items(), key=lambda pair: -pair[1])}
