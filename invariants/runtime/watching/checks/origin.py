"""What the run started from, for RUN-45: a fingerprint of the weights when the guards were attached."""

from __future__ import annotations

from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.fingerprint import of_weights
from karat.invariants.runtime.watching.loop import Loop


class Origin(Check):
    """No rule of its own: `independent` judges the reports of several runs. That of the first batch is from Repeats."""

    def start(self, loop: Loop) -> None:
        loop.fingerprint["weights"] = of_weights(loop.parameters.values())
