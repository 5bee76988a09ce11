"""RUN-37: both parts of the data, when the loop gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karat.invariants.run.run37_split import MOST_EXCESS, RULE
from karat.invariants.runtime.watching.check import Check
from karat.invariants.runtime.watching.loop import Loop
from karat.invariants.runtime.watching.samples import compared


class Split(Check):
    rules = (RULE,)
    interval = "when guards.split(…) is called"

    def start(self, loop: Loop) -> None:
        loop.not_checked(RULE, "guards.split(train=…, validation=…) was not called")

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        if "split" not in logged:
            return
        loop.unchecked.pop(RULE.slug, None)
        for found in compared(*logged["split"]):
            loop.judge(
                RULE, loop.step, RULE.margin(found.excess, MOST_EXCESS),
                lambda found=found: {  # type: ignore[misc]
                    "message": f"{found.share:.1%} of the validation set is in the training set "
                    f"({found.shared} of {found.looked_at} {found.unit})",
                    "where": found.unit,
                    "evidence": f"first at {', '.join(map(str, found.where))}; "
                    f"the training set repeats {found.natural:.2%} of itself",
                },
            )  # fmt: skip
