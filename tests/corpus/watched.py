"""What the guards say of one loop, with the guards alone: what the tests of the watch family ask of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from karat.core.report import Violation
from karat.invariants.runtime import watch

Run = Callable[[Callable[..., Any]], None]


def watched(run: Run) -> list[Violation]:
    """The violations of all guards that the loop attached, seeded; no check may have raised."""
    made: list[Any] = []

    def attach(model: Any, optimizer: Any, **declared: Any) -> Any:
        made.append(watch(model, optimizer, policy="observe", **declared))
        return made[-1]

    torch.manual_seed(3)
    run(attach)
    reports = [guards.finish() for guards in made]
    assert not [why for r in reports for why in r.not_checked.values() if "its check raised" in why]
    return [v for report in reports for v in report.violations]
