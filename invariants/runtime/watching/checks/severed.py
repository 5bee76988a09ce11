"""RUN-8 in mid-run, of loops that call the parts of a model themselves: a part that was trained is called on and gets no gradient
any more, for its output goes into the next one without its graph.

At the start RUN-8 sees that by hooks on the parts (seams.py), which are then taken off. They are put on again for a few steps
where a parameter that had gradients is found without one at turns. A part that is trained in some steps only gets one then.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from karat.invariants.run.cadence import TURNS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run08_gradient_reach import RULE
from karat.invariants.run.spec import covered
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.grouping import groups, spoken
from karat.invariants.runtime.watching.loop import Held, Loop
from karat.invariants.runtime.watching.seams import Seam, Seams

SILENT = 8
"""Steps without a gradient after which the parts are looked at."""
STEPS = 3
"""Steps in a row in which an output must go into another part without its graph."""
MOST = 3
"""Times that the parts are looked at."""


class Severed(Check):
    rules = (RULE,)
    interval = TURNS
    heard = True

    def __init__(self) -> None:
        self._reached: set[int] = set()
        self._since: dict[int, int] = {}
        self._seams = Seams()
        self._times, self._row = 0, 0
        self._read = 0

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._seams.attached:
            loop.stir(turn=True)

    def before_step(self, loop: Loop, moment: Moment) -> None:
        if moment.index or moment.closure or (moment.between and not self._seams.attached):
            return
        if loop.tallies[RULE.id].violations or self._times > MOST:
            loop.off(self)  # it is said, or cannot be told
            return
        if self._read != loop.renamed:
            self._read, self._reached, self._since = loop.renamed, set(), {}
        held = moment.held
        trained = {id(held[i].parameter) for i, norm in moment.norms.items() if norm > 0}
        silent = list(moment.missing)
        if any(a.backwards and not a.cleared for a in loop.anchors.get(moment.index, ())):
            # The loop keeps gradients as zeros; in any other a gradient of zeros came through the graph, which is whole.
            silent += [i for i, norm in moment.norms.items() if norm == 0]
        self._reached |= trained
        for key in trained & self._since.keys():
            del self._since[key]
        for i in silent:
            if id(held[i].parameter) in self._reached and expected(loop, held[i]):
                self._since.setdefault(id(held[i].parameter), moment.step)
        if self._seams.attached:
            self._look(loop, moment, trained)
        elif trained and any(moment.step - since >= SILENT for since in self._since.values()):
            self._times += 1
            self._row = 0
            self._seams.attach(loop, self)

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if self._seams.attached:
            self._seams.forget()

    def drop(self) -> None:
        self._seams.drop()
        self._reached, self._since = set(), {}

    def _look(self, loop: Loop, moment: Moment, trained: set[int]) -> None:
        """In a step with hooks on the parts: where an output lost its graph, in so many in a row."""
        own = {id(h.parameter): h for h in moment.held}
        for seam in self._seams.found():
            given = {key for key in seam.before if key in own}
            if seam.meant or not given or not given <= self._since.keys() or not trained & seam.after:
                continue
            self._row += 1
            if self._row < STEPS:
                return
            self._say(
                loop, seam, {own[key].name: own[key].parameter for key in given}, min(self._since[k] for k in given)
            )
            return
        self._seams.drop()
        self._since = {}

    def _say(self, loop: Loop, seam: Seam, cut: dict[str, Tensor], since: int) -> None:
        names = list(loop.parameters)
        loop.judge(
            RULE, since, RULE.margin(len(cut), 0),
            lambda: {
                "message": f"{spoken(cut, names)} was trained, and gets no gradient since step {since}, though it is called: "
                f"the output of {seam.giver} goes into {seam.taker} {seam.how}",
                "where": next(iter(groups(cut, names)), ""), "severity": Severity.WARN,
                "evidence": f"the input of {seam.taker} has the numbers of that output, but not its graph, in {STEPS} steps in a "
                "row",
            },
        )  # fmt: skip
        loop.off(self)


def expected(loop: Loop, held: Held) -> bool:
    """Whether a parameter is to have a gradient, for all that is declared."""
    p = held.parameter
    declared = covered(held.name, loop.spec.frozen) or covered(held.name, loop.spec.detached)
    return bool(held.name) and p.requires_grad and not declared
