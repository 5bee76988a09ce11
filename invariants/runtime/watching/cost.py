"""What the guards cost a loop: seconds of CPU of its thread, by check, the first steps apart from all later ones.

Steps are of a kind, by how much is looked at in them, and some of each kind are timed and stand for the others. What hooks
of autograd take inside the backward pass is not in it.
"""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """START: the first steps; LOOK: the outputs too; TURN: all that is asked in most steps; BETWEEN: quick questions."""

    START = 0
    LOOK = 1
    TURN = 2
    BETWEEN = 3


TIMED_BETWEEN = 31
TIMED = (1, 1, 5, TIMED_BETWEEN)
"""Of so many steps of a kind one is timed; of no common factor with the turns that checks take."""
FRAME = "frame"
"""What is not inside any check: the hooks themselves and the transfer."""


class Cost:
    """timed: whether the step that is under way is timed."""

    def __init__(self) -> None:
        self.timed = True
        self._kind = Kind.START
        self._steps, self._sampled = [0, 0, 0, 0], [0, 0, 0, 0]
        self._whole = [0.0, 0.0, 0.0, 0.0]
        self._checks: tuple[dict[str, float], ...] = ({}, {}, {}, {})

    @property
    def start(self) -> float:
        """Seconds that the first steps took, with all that is looked for once."""
        return self._whole[Kind.START]

    def turn(self, kind: Kind) -> None:
        """A step is over, and one of a kind begins."""
        self._steps[self._kind] += 1
        self._sampled[self._kind] += self.timed
        self._kind = kind
        self.timed = self._steps[kind] % TIMED[kind] == 0

    def turn_between(self) -> None:
        """As `turn(Kind.BETWEEN)` from such a step, in less time."""
        count = self._steps[3] = self._steps[3] + 1
        if self.timed:
            self._sampled[3] += 1
        self.timed = count % TIMED_BETWEEN == 0

    def add(self, seconds: float) -> None:
        """Takes what one hook took in a step that is timed."""
        self._whole[self._kind] += seconds

    def take(self, name: str, seconds: float) -> None:
        """Takes what one check took of it."""
        table = self._checks[self._kind]
        table[name] = table.get(name, 0.0) + seconds

    def of_a_step(self) -> dict[str, float]:
        """Check -> microseconds of a step after the first ones, the most expensive first; empty where none was taken."""
        kinds = [kind for kind in Kind if kind is not Kind.START and self._sampled[kind]]
        steps = sum(self._steps[kind] for kind in kinds)
        shares: dict[str, float] = {}
        for kind in kinds:
            each = 1e6 * self._steps[kind] / self._sampled[kind] / steps
            for name, seconds in self._checks[kind].items():
                shares[name] = shares.get(name, 0.0) + each * seconds
            rest = self._whole[kind] - sum(self._checks[kind].values())
            shares[FRAME] = shares.get(FRAME, 0.0) + each * max(0.0, rest)
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))
