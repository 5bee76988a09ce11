"""What a learning rate did so far: its falls and rises, whether it still warms up. Plain numbers, one group at a time."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

AGREE = 1e-6
"""Rates that differ by less than this share are equal."""
FALLS, RISES = 3, 3
"""Falls in a row after which one rise is a finding; rises in a row after any fall that are one."""
REMEMBERED = 24
GAP = 1.5
"""A rise is due again for this many times the longest pause between rises so far."""
RANGE_TEST = 1e-3
"""Rises by one factor, to this relative accuracy, are those of a range test."""


@dataclass
class History:
    """Fed with each step's rate. fall: falls in a row before the last rises; rise: rises in a row; top, low: their ends."""

    last: float | None = None
    fall: int = 0
    rise: int = 0
    falls: int = 0
    fallen: bool = False
    rises: int = 0
    top: float = 0.0
    low: float = 0.0
    low_at: int = 0
    first_rise: int = 0
    last_rise: int = 0
    gap: int = 0
    changes: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def take(self, step: int, rate: float) -> bool:
        """Takes a rate; whether it rose after a decay: once three falls in a row, or for the third time after any fall."""
        before, self.last = self.last, rate
        if before is None:
            self.top = rate
            self.changes.append((step, rate))
            return False
        if rate < before - AGREE * abs(before):
            self.fall = 1 if self.rise else self.fall + 1
            self.rise = 0
            self.falls, self.fallen = self.falls + 1, True
            self.low, self.low_at = rate, step
        elif rate > before + AGREE * abs(before):
            self.rise += 1
            self.rises += 1
            self.gap = max(self.gap, step - self.last_rise) if self.rises > 1 else 0
            self.first_rise, self.last_rise = self.first_rise or step, step
        else:
            return False
        self.top = max(self.top, rate)
        self.changes.append((step, rate))
        return bool(self.rise and self.falls and (self.fall >= FALLS or self.rise == RISES))

    def restart(self) -> None:
        """Forgets the falls: a rise was meant."""
        self.fall = self.rise = self.falls = 0

    def warming(self, step: int) -> bool:
        """Whether the rate has only risen so far, at least twice, and another rise is due."""
        if self.fallen or self.rises < 2:
            return False
        return step - self.last_rise <= GAP * max(self.gap, 1)

    @property
    def geometric(self) -> bool:
        """Whether the last rises were by one factor."""
        rates = [rate for _, rate in self.changes][-8:]
        if len(rates) < 4 or not all(rate > 0 for rate in rates):
            return False
        factors = [b / a for a, b in itertools.pairwise(rates)]
        return max(factors) - min(factors) <= RANGE_TEST * (max(factors) - 1)

    @property
    def mirrored(self) -> bool:
        """Whether the rate rises from its lowest as it fell to it: a cosine past its end."""
        rates = [rate for _, rate in self.changes]
        lowest = min(range(len(rates)), key=lambda k: rates[k])
        before, after = rates[:lowest][::-1], rates[lowest + 1 :]
        pairs = list(zip(before, after, strict=False))
        span = self.top - rates[lowest]
        return bool(pairs) and span > 0 and all(abs(a - b) <= 0.02 * max(a, b) for a, b in pairs)
